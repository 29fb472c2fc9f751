from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "widefield"

PUBLIC = {
    "widefield": ["MergeReport", "__version__", "explain", "merge", "ops"],
    "widefield._core": [],
    "widefield.analysis": [
        "Cost",
        "Features",
        "KernelWeights",
        "Latency",
        "NoiseTensors",
        "PhotoTensors",
        "ReceptiveField",
        "Report",
        "ShapeBias",
        "evaluate_shape_bias",
        "load_receptive_fields",
        "measure_cost",
        "measure_kernel_weights",
        "measure_latency",
        "measure_receptive_field",
        "measure_receptive_fields",
        "save_receptive_fields",
        "theoretical_receptive_field",
        "write_report",
    ],
    "widefield.ops": [
        "Candidate",
        "Explanation",
        "Pass",
        "Problem",
        "SharingGrid",
        "cross_kernel",
        "decomposed_conv2d",
        "depthwise_conv1d",
        "depthwise_conv2d",
        "explain",
        "peripheral_conv2d",
        "peripheral_kernel",
        "sum_cells",
        "use_backend",
    ],
    "widefield.ops.depthwise_conv": ["Problem", "depthwise_conv1d", "depthwise_conv2d", "explain"],
    "widefield.nn": [
        "ConvNorm2d",
        "DecomposedConv2d",
        "DepthwiseConv2d",
        "DilatedReparamConv2d",
        "GlobalResponseNorm",
        "PeripheralConv2d",
        "ReparamConv2d",
        "SqueezeExcite",
        "branch_table",
    ],
    "widefield.reparam": [
        "MergeReport",
        "Reparameterizable",
        "UnitError",
        "UnmergeInfo",
        "affine_of_batch_norm",
        "check_evaluation_mode",
        "embed_kernel",
        "fold",
        "fold_affine_after",
        "fold_affine_before",
        "fold_after",
        "fold_before",
        "fold_scale_after",
        "folded_after",
        "merge",
        "set_parameters",
        "unmerge",
        "unmerge_info",
    ],
    "widefield.surgery": ["EnlargeReport", "EnlargedConv2d", "EnlargedLayer", "METHODS", "SkippedLayer", "enlarge"],
    "widefield.checkpoints": [],
    "widefield.models": [
        "ConvNeXtLK",
        "MobileNetV2LK",
        "PeLK",
        "RepLKNet",
        "SLaK",
        "UniRepLKNet",
        "create_model",
        "list_models",
        "load_published",
    ],
}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_operators_and_layers_need_torch_alone() -> None:
    modules = loaded_by("import widefield.ops, widefield.nn, widefield.reparam, widefield")
    assert "widefield.nn" in modules
    absent = {"triton", "timm", "torchvision", "matplotlib", "accelerate", "rich", "tyro", "safetensors"}
    assert modules & absent == set()
    assert not any(name.startswith(("widefield.models", "widefield.engine", "widefield.cli")) for name in modules)


def test_models_are_there_when_they_are_asked_for() -> None:
    code = "import widefield\nassert len(widefield.list_models()) > 10\nassert callable(widefield.create_model)"
    assert "widefield.models" in loaded_by(code)
    widefield = importlib.import_module("widefield")
    with pytest.raises(AttributeError, match="module 'widefield' has no attribute 'create_modle'"):
        _ = widefield.create_modle


@pytest.mark.parametrize("name", PUBLIC)
def test_a_package_offers_the_names_that_are_written_down(name: str) -> None:
    source = Path(str(importlib.import_module(name).__file__)).read_text()
    offered = [
        alias.asname
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    ]
    assert sorted(offered) == PUBLIC[name]


def test_no_file_is_too_long() -> None:
    limits = {SOURCE: 400, ROOT / "tests": 500}
    long = [
        str(path.relative_to(ROOT))
        for folder, limit in limits.items()
        for path in folder.rglob("*.py")
        if len(path.read_text().splitlines()) > limit
    ]
    assert long == []


def test_only_the_command_line_prints() -> None:
    printing = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if path.relative_to(SOURCE).parts[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


ANCHORS = (
    r"stem\.[0-3]\.(conv|norm)\.\w+",
    r"stages\.[1-3]\.downsample\.[01]\.(conv|norm)\.\w+",
    r"stages\.[0-3]\.blocks\.\d+\.norm\.\w+",
    r"stages\.[0-3]\.blocks\.\d+\.conv[12]\.(conv|norm)\.\w+",
    r"stages\.[0-3]\.blocks\.\d+\.large_kernel\.(large|small)\.(conv|norm)\.\w+",
    r"norm\.\w+",
    r"head\.fc\.(weight|bias)",
)


def test_state_dicts_keep_their_names() -> None:
    importlib.import_module("widefield.models")
    keys = list(timm.create_model("replknet_nano", device="meta").state_dict())
    assert [key for key in keys if not any(re.fullmatch(anchor, key) for anchor in ANCHORS)] == []
    assert [anchor for anchor in ANCHORS if not any(re.fullmatch(anchor, key) for key in keys)] == []
    assert len(keys) == 343
    assert keys[0] == "stem.0.conv.weight"
    assert keys[-1] == "head.fc.bias"
