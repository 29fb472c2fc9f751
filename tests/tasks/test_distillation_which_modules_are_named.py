"""Patterns of module names mean the student's modules, with adapters around it and without."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tasks.distillation_support import student_run, write_teacher
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from widefield.tasks.classification import train
from widefield.tasks.distillation import AdaptedStudent, student_patterns


class Tiny(nn.Module):
    """As little as an adapted student asks of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.feature_info = [{"reduction": 4, "num_chs": 4}]

    def forward_intermediates(self, images: torch.Tensor, indices: list[int], output_fmt: str) -> Any:
        x = self.stem(images)
        return x, [x]

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_patterns_are_prefixed_where_there_are_adapters_and_kept_where_they_say_so_themselves() -> None:
    patterns = ("stages.*", "student.stages.0", "student", "adapters.32", "students.0")
    assert student_patterns(Tiny(), patterns) == patterns
    expected = ("student.stages.*", "student.stages.0", "student", "adapters.32", "student.students.0")
    assert student_patterns(AdaptedStudent(Tiny(), Tiny(), (4,), 16), patterns) == expected


@pytest.mark.parametrize("method", ["kd", "feature"])
def test_the_same_patterns_serve_with_adapters_and_without(method: Literal["kd", "feature"], tmp_path: Path) -> None:
    changes = {
        "precision": "bf16",
        "float32_modules": ("stages.3.blocks.*",),
        "monitor_activations": True,
        "monitored_modules": ("stages.*",),
    }
    config = student_run(write_teacher(tmp_path / "teacher.safetensors"), methods=(method,), trainer=changes)
    dtypes: dict[int, set[torch.dtype]] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        # 1x1 convolutions without a bias that keep the width of the stage are in the blocks and nowhere else.
        if isinstance(module, nn.Conv2d) and module.training and module.weight.shape[2:] == (1, 1):
            width_in, width_out = module.weight.shape[1], module.weight.shape[0]
            if width_in == width_out and module.bias is None:
                dtypes.setdefault(width_out, set()).add(output.dtype)

    hook = register_module_forward_hook(note)
    try:
        train(config, tmp_path / "run")
    finally:
        hook.remove()
    *others, last = [dtypes[width] for width in sorted(dtypes)]
    assert last == {torch.float32}
    assert others == [{torch.bfloat16}] * 3
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    prefix = "student." if method == "feature" else ""
    watched = [name for name in row if name.startswith("activation_max.")]
    assert watched == [f"activation_max.{prefix}stages.{stage}" for stage in range(4)]
    assert all(float(row[name]) > 0 for name in watched)
