from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.families import FAMILIES, Family, images
from support.random_statistics import randomise
from timm.layers import convert_splitbn_model, set_scriptable
from timm.models import model_parameters, save_for_hf
from timm.models._features_fx import GraphExtractNet, get_graph_node_names
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad, freeze, unfreeze
from timm.utils.model import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from torch import Tensor, nn

from widefield import list_models
from widefield._core.errors import InputError

# What timm asks of each network that it lists: by day of two small ones, by night of every family and variant.
WHOLE = [Family(name) for name in list_models()]
BY_DAY = {"pelk_a", "unireplknet_a"}


def by_day_and_night(*networks: Family) -> pytest.MarkDecorator:
    drawn = [
        network if network in FAMILIES and str(network) in BY_DAY else pytest.param(network, marks=pytest.mark.slow)
        for network in networks
    ]
    return pytest.mark.parametrize("network", drawn, ids=lambda n: f"{n}{'-small' if n in FAMILIES else ''}")


of_each_family = by_day_and_night(*FAMILIES)
of_every_variant = by_day_and_night(*FAMILIES, *WHOLE)
of_each_family_by_day = pytest.mark.parametrize("network", FAMILIES, ids=str)
SMALL = (1, 3, 96, 96)


def graph_of(model: nn.Module) -> nn.Module:
    train, evaluation = get_graph_node_names(model)
    assert train[-1] == evaluation[-1]
    return GraphExtractNet(model, [evaluation[-1]], squeeze_out=True)


def without_gradient(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
@torch.no_grad()
def test_a_network_runs_at_the_size_of_its_configuration(name: str) -> None:
    model = randomise(timm.create_model(name))
    config = model.pretrained_cfg
    features = model.forward_features(images(1, *config["input_size"]))
    assert features.shape[2:] == config["pool_size"]
    logits = model.forward_head(features)
    assert logits.shape == (1, config["num_classes"])
    assert bool(torch.isfinite(logits).all())


@of_every_variant
def test_calls_within_inference_mode_agree(network: Family) -> None:
    model, x = randomise(network.make(num_classes=4)), images(*SMALL)
    with torch.no_grad():
        expected = model(x)
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        made_here = randomise(network.make(num_classes=4))
        for _ in range(2):
            torch.testing.assert_close(made_here(x), expected, rtol=1e-4, atol=1e-4)


@of_every_variant
def test_the_graph_of_a_network_computes_the_same(network: Family) -> None:
    model, x = randomise(network.make(num_classes=4)), images(*SMALL)
    graph = graph_of(model)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(graph(x), expected, rtol=1e-5, atol=1e-5)


@of_every_variant
def test_the_graph_of_a_network_is_trained(network: Family) -> None:
    graph = graph_of(network.make(num_classes=4).train()).train()
    y = graph(images(2, 3, 64, 64))
    assert y.shape == (2, 4)
    y.square().mean().backward()
    assert without_gradient(graph) == []


@of_every_variant
@pytest.mark.parametrize(
    "indices", [(1, 3), *(pytest.param(i, marks=pytest.mark.slow) for i in (None, (-1,), 2))], ids=str
)
@torch.no_grad()
def test_every_extractor_of_features_returns_the_same_stages(network: Family, indices: Any) -> None:
    x = images(*SMALL)
    whole = network.make().eval()
    stages = whole.forward_intermediates(x, indices=indices, intermediates_only=True)
    info = [whole.feature_info[index] for index in torch.arange(4)[_listed(indices)].tolist()]
    options = {} if indices is None else {"out_indices": indices}
    for kind in (None, "getter", "list", "dict", "hook", "fx"):
        model = network.make(features_only=True, **options, **({} if kind is None else {"feature_cls": kind})).eval()
        assert model.feature_info.channels() == [entry["num_chs"] for entry in info], kind
        assert model.feature_info.reduction() == [entry["reduction"] for entry in info], kind
        outputs = model(x)
        outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
        assert len(outputs) == len(info)
        for y, stage, entry in zip(outputs, stages, info, strict=True):
            torch.testing.assert_close(y, stage, rtol=1e-4, atol=1e-5, msg=f"{kind}: {entry}")
            assert tuple(y.shape) == (1, entry["num_chs"], 96 // entry["reduction"], 96 // entry["reduction"])


def _listed(indices: Any) -> Any:
    return slice(None) if indices is None else slice(-indices, None) if isinstance(indices, int) else list(indices)


@of_each_family
def test_features_are_trained_with_checkpointing(network: Family) -> None:
    plain, saved = (network.make(features_only=True).train() for _ in range(2))
    saved.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in saved.model.stages)
    for model in (plain, saved):
        sum(y.square().mean() for y in model(images())).backward()
    for (name, a), b in zip(plain.named_parameters(), saved.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    saved.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in saved.model.stages)


@of_each_family_by_day
def test_no_stage_at_all_may_be_asked_for(network: Family) -> None:
    model = network.make(features_only=True, out_indices=())
    assert model(images()) == []
    assert model.feature_info.channels() == []
    assert len(model.model.stages) == 0


def test_norms_of_stages_are_never_passed_by() -> None:
    family = FAMILIES[3]
    for kind in ("list", "dict", "hook", "fx"):
        text = f"Expected no `feature_cls`, or \"getter\", with `feature_norms=True`, but got '{kind}': leave"
        with pytest.raises(InputError, match=text):
            family.make(features_only=True, feature_norms=True, feature_cls=kind)
    family.make(features_only=True, feature_norms=True, feature_cls="getter")


@of_each_family_by_day
def test_the_stride_that_a_network_has_may_be_named(network: Family) -> None:
    assert len(network.make(features_only=True, output_stride=32)(images())) == 4
    with pytest.raises(TypeError, match="unexpected keyword argument 'output_stride'"):
        network.make(output_stride=16)


# torch itself tells of the end of scripting.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
@of_each_family_by_day
def test_scripting_is_refused_in_one_sentence(network: Family) -> None:
    text = "Expected a compiler that runs the Python of a network, but got torch.jit.script: use torch.compile or"
    with set_scriptable(True):
        for model in (network.make(), network.make(features_only=True), nn.Sequential(network.make(device="meta"))):
            with pytest.raises(InputError, match=text):
                torch.jit.script(model)


@of_every_variant
@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_images_may_have_other_channels(network: Family, channels: int) -> None:
    model = network.make(in_chans=channels, num_classes=5, device="meta")
    first = model.get_submodule(model.pretrained_cfg["first_conv"])
    assert first.in_channels == channels
    assert model(torch.empty(2, channels, 64, 64, device="meta")).shape == (2, 5)


@of_each_family
def test_weights_of_a_file_are_fitted_to_other_channels_and_classes(network: Family, tmp_path: Path) -> None:
    source, file = randomise(network.make()), tmp_path / "weights.pth"
    torch.save(source.state_dict(), file)
    given: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}
    torch.testing.assert_close(network.make(**given).eval()(images()), source(images()))
    name = source.pretrained_cfg["first_conv"]
    for channels, classes in ((1, 5), (4, 0), (8, 1000)):
        model = network.make(in_chans=channels, num_classes=classes, **given).eval()
        weight = model.get_submodule(name).weight
        if channels == 1:
            torch.testing.assert_close(weight, source.get_submodule(name).weight.sum(1, keepdim=True))
        assert model(images(2, channels, 64, 64)).shape == (2, classes or network.features)
    features = network.make(features_only=True, **given).eval()(images())
    for y, stage in zip(features, source.forward_intermediates(images(), intermediates_only=True), strict=True):
        torch.testing.assert_close(y, stage)


@of_each_family
def test_a_whole_network_is_copied_and_stored(network: Family) -> None:
    model, buffer = randomise(network.make(num_classes=3)), io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False))
    for other in copies:
        torch.testing.assert_close(other(images()), model(images()), rtol=0, atol=0)


@of_every_variant
@torch.no_grad()
def test_channels_last_computes_the_same(network: Family) -> None:
    model, x = randomise(network.make(num_classes=4)), images(*SMALL)
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected, rtol=1e-3, atol=1e-4)


@of_each_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_trains_and_infers(network: Family, dtype: torch.dtype) -> None:
    model = network.make(num_classes=4).train()
    with torch.autocast("cpu", dtype):
        y = model(images())
    assert y.dtype == dtype
    y.float().square().mean().backward()
    assert without_gradient(model) == []
    assert bool(torch.isfinite(randomise(model).to(dtype)(images(dtype=dtype))).all())


@of_each_family
def test_timms_parts_of_a_training_take_the_network(network: Family) -> None:
    model = network.make(num_classes=4).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    average = ModelEmaV3(model, decay=0.5)
    model(images()).square().mean().backward()
    dispatch_clip_grad(model_parameters(model, exclude_head=True), 0.1, mode="agc")
    optimizer.step()
    average.update(model)
    assert bool(torch.isfinite(average.eval()(images())).all())
    freeze(model, ["stem", "stages.0"])
    kept = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert kept == {name for name, _ in model.named_parameters() if name.startswith(("stem.", "stages.0."))}
    model(images()).square().mean().backward()
    unfreeze(model, ["stem", "stages.0"])
    assert all(parameter.requires_grad for parameter in model.parameters())


@of_each_family
def test_norms_are_frozen_split_and_given_back(network: Family) -> None:
    model = randomise(network.make(num_classes=4))
    expected = model(images())
    frozen = freeze_batch_norm_2d(copy.deepcopy(model))
    torch.testing.assert_close(frozen(images()), expected, rtol=1e-4, atol=1e-4)
    frozen.train()(images()).sum().backward()
    torch.testing.assert_close(unfreeze_batch_norm_2d(frozen).eval()(images()), expected, rtol=1e-4, atol=1e-4)
    split: Tensor = convert_splitbn_model(copy.deepcopy(model), 2).train()(images(4, 3, 64, 64))
    assert split.shape == (4, 4)


@of_each_family
def test_a_folder_as_on_the_hub_is_opened_again(network: Family, tmp_path: Path) -> None:
    model = randomise(network.make(num_classes=7))
    save_for_hf(model, tmp_path, model_args=dict(network.options))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(again(images()), model(images()))
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3, in_chans=1)
    assert other(images(2, 1, 64, 64)).shape == (2, 3)
