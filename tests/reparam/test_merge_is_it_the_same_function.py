from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import pytest
import timm
import torch
import torchvision
from support.random_statistics import randomise
from timm.layers import BatchNormAct2d
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

import widefield.models  # noqa: F401 - registers the models
from widefield import merge
from widefield._core.errors import InputError
from widefield.nn import ConvNorm2d, ReparamConv2d
from widefield.nn import reparam_conv as layers
from widefield.reparam import fold

SIZE = (1, 3, 64, 64)


def drawn(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(timm.create_model(name, num_classes=10).double())


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_whole_network_merges_to_rounding_error_in_both_memory_formats(layout: torch.memory_format) -> None:
    model = drawn("replknet_nano").to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    x = torch.randn(SIZE, dtype=torch.float64).contiguous(memory_format=layout)
    branched = model(x)
    report = merge(model, x)
    assert report.relative_error < 1e-12
    assert report.worst_unit is not None
    assert report.worst_unit.relative_error < 1e-12
    torch.testing.assert_close(model(x), branched, rtol=1e-11, atol=1e-11)
    assert norms(model) == 1, "the norm before the pooling alone remains"
    assert report.parameters_after == sum(p.numel() for p in model.parameters()) < report.parameters_before


def test_float32_merges_to_its_own_rounding_error() -> None:
    report = merge(drawn("replknet_nano").float())
    assert report.relative_error < 1e-5
    assert report.dtype == "float32"
    assert report.example_shape == (1, 3, 224, 224)


def test_every_sub_module_merges_alone() -> None:
    model = drawn("replknet_nano")
    inputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.Identity | nn.Flatten):
            module.register_forward_hook(lambda _, values, __, name=name: inputs.update({name: values[0].detach()}))
    model(torch.randn(SIZE, dtype=torch.float64))
    for module in model.modules():
        module._forward_hooks.clear()
    merged = 0
    for name, x in inputs.items():
        part = copy.deepcopy(model.get_submodule(name))
        report = merge(part, x)
        assert report.relative_error < 1e-12, name
        merged += bool(report.unit_errors)
    assert merged > 50


def test_merging_a_network_again_changes_nothing() -> None:
    model = drawn("replknet_nano")
    x = torch.randn(SIZE, dtype=torch.float64)
    merge(model, x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert fold(model) == []
    assert merge(model, x).unit_errors == ()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_timm_merges_to_the_same_weights() -> None:
    ours, theirs = drawn("replknet_nano"), reparameterize_model(drawn("replknet_nano"))
    merge(ours, torch.randn(SIZE, dtype=torch.float64))
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_of_torchvision_merge_where_norms_follow_convolutions_in_a_sequence(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(torchvision.models.get_model(name, weights=None, num_classes=10).double())
    before = norms(model)
    report = merge(model, torch.randn(SIZE, dtype=torch.float64))
    assert report.relative_error < 1e-12
    assert norms(model) == {"resnet18": before - 3, "mobilenet_v2": 0}[name]
    assert fold(model) == [], "one pass folds everything"


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "fastvit_t8"])
def test_networks_of_timm_merge_by_their_own_hooks(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=10).double())
    report = merge(model, torch.randn(SIZE, dtype=torch.float64))
    assert report.relative_error < 1e-11
    assert report.unit_errors
    assert report.parameters_after < report.parameters_before


def test_a_hook_may_return_what_takes_its_place() -> None:
    torch.manual_seed(0)
    model = randomise(timm.create_model("levit_128s", num_classes=10))
    kinds = {type(module).__name__ for module in model.modules()}
    report = merge(model)
    assert report.relative_error < 1e-4
    assert kinds - {type(module).__name__ for module in model.modules()} >= {"ConvNorm", "LinearNorm", "NormLinear"}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(6), nn.SyncBatchNorm(6), nn.BatchNorm2d(6, affine=False)], ids=lambda n: repr(n)[:13]
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_in_a_sequence_takes_its_norm(norm: nn.Module, bias: bool) -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias, padding=1), norm, nn.ReLU()).double())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert merge(model, x).relative_error < 1e-13
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[1], nn.Identity)


def test_linear_and_one_dimensional_layers_take_their_norms_too() -> None:
    linear = randomise(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double())
    assert merge(linear, torch.randn(3, 5, dtype=torch.float64)).relative_error < 1e-13
    line = randomise(nn.Sequential(nn.Conv1d(3, 6, 3, groups=3), nn.BatchNorm1d(6)).double())
    assert merge(line, torch.randn(2, 3, 9, dtype=torch.float64)).relative_error < 1e-13
    volume = randomise(nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)).double())
    assert merge(volume, torch.randn(1, 2, 5, 5, 5, dtype=torch.float64)).relative_error < 1e-13


def test_a_sequence_that_folds_does_not_hide_the_sequences_in_it() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model = randomise(nn.Sequential(inner, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double())
    report = merge(model, torch.randn(1, 4, 5, 5, dtype=torch.float64))
    assert [unit.name for unit in report.unit_errors] == ["0", ""]
    assert report.relative_error < 1e-13
    assert norms(model) == 0


def test_a_norm_that_does_more_than_normalise_stays() -> None:
    model = randomise(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4)))
    assert merge(model, torch.randn(SIZE)).unit_errors == ()
    without_statistics = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert merge(without_statistics, torch.randn(SIZE)).unit_errors == ()


def test_where_chooses_what_is_folded() -> None:
    model = drawn("replknet_nano")
    x = torch.randn(SIZE, dtype=torch.float64)
    report = merge(model, x, where=lambda name, module: isinstance(module, ReparamConv2d))
    assert len(report.unit_errors) == 6
    assert all(name.endswith(".large_kernel") for name in (unit.name for unit in report.unit_errors))
    stem = merge(model, x, where=lambda name, module: name.startswith("stem"))
    assert [unit.name for unit in stem.unit_errors] == ["stem.0", "stem.1", "stem.2", "stem.3"]
    assert merge(model, x, where=lambda name, module: False).unit_errors == ()
    assert merge(model, x).relative_error < 1e-12


def test_training_mode_is_refused_by_the_name_of_the_module() -> None:
    model = drawn("replknet_nano")
    model.get_submodule("stages.1.blocks.0.norm").train()
    text = "(the module 'stages.1.blocks.0.norm'): call model.eval() first."
    for action in (merge, fold):
        with pytest.raises(InputError, match=re.escape(text)):
            action(model)
    assert norms(model) == norms(drawn("replknet_nano")), "nothing was folded"
    with pytest.raises(InputError, match=re.escape("training mode (the module itself)")):
        fold(nn.Sequential())


def test_a_wrong_fold_makes_the_certificate_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "embed_kernel", lambda weight, size: weight.new_zeros(*weight.shape[:2], *size))
    report = merge(drawn("replknet_nano"), torch.randn(SIZE, dtype=torch.float64))
    assert report.relative_error > 1e-3
    assert report.worst_unit is not None
    assert report.worst_unit.relative_error > 1e-2
    right = [unit for unit in report.unit_errors if unit.name.startswith("stem")]
    assert all(unit.relative_error < 1e-12 for unit in right), "the certificate says where"


def test_a_hook_that_does_nothing_right_shows() -> None:
    class Doubling(nn.Module):
        factor = 1

        def forward(self, x: Tensor) -> Tensor:
            return self.factor * x

        def fuse(self) -> None:
            self.factor = 2

    report = merge(nn.Sequential(Doubling()).eval(), torch.randn(2, 2))
    assert report.relative_error == report.unit_errors[0].relative_error == pytest.approx(1)


def test_units_that_are_called_by_keyword_or_work_in_place_are_measured_right() -> None:
    class InPlace(nn.Module):
        is_merged = False

        def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
            return x.add_(shift).relu_()

        def reparameterize(self) -> None:
            self.is_merged = True

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = InPlace()

        def forward(self, x: Tensor) -> Tensor:
            return self.unit(x, shift=torch.full((), 0.5)) + 1

    x = torch.randn(3, 4)
    kept = x.clone()
    report = merge(Network().eval(), x)
    assert [unit.relative_error for unit in report.unit_errors] == [0]
    assert report.relative_error == 0
    assert torch.equal(x, kept), "the example is not changed"


def test_an_output_that_is_not_finite_has_an_infinite_error() -> None:
    model = randomise(ConvNorm2d(3, 3, 1))
    with torch.no_grad():
        model.conv.weight.view(-1)[0] = math.nan  # type: ignore[union-attr]
    report = merge(model, torch.randn(SIZE))
    assert report.relative_error == math.inf
    assert report.unit_errors[0].relative_error == math.inf


def test_outputs_may_be_nested_zero_or_empty() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"a": [x * 0, (x[:0],)], "b": x, "c": "text"}

    assert merge(Many().eval(), torch.randn(2, 2)).relative_error == 0

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "text"

    text = "Expected a network that returns tensors, but got str: merge the part of it that does."
    with pytest.raises(InputError, match=re.escape(text)):
        merge(Nothing().eval(), torch.randn(2, 2))


def test_without_an_example_and_a_stated_size_the_example_is_asked_for() -> None:
    text = (
        "Expected an example input for the certificate, or a network that states its input size, but got Sequential "
        "without either: pass example=, for instance torch.randn(1, 3, 224, 224)."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        merge(nn.Sequential(nn.Conv2d(3, 3, 1)).eval())


def test_the_example_that_is_made_has_the_channels_of_the_network() -> None:
    report = merge(timm.create_model("replknet_nano", in_chans=1).eval())
    assert report.example_shape == (1, 1, 224, 224)


def test_the_report_can_be_read_and_kept() -> None:
    report = merge(drawn("replknet_nano"), torch.randn(SIZE, dtype=torch.float64))
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["parameters_before"] == report.parameters_before
    assert plain["unit_errors"][0] == {"name": "stem.0", "relative_error": report.unit_errors[0].relative_error}
    assert report.worst_unit is not None
    assert str(report).splitlines() == [
        f"merged {len(report.unit_errors)} units: {report.parameters_before:,} -> "
        f"{report.parameters_after:,} parameters",
        f"relative error of the output {report.relative_error:.2e} (float64, input 1x3x64x64)",
        f"largest relative error of a unit {report.worst_unit.relative_error:.2e} ({report.worst_unit.name})",
    ]
    layer = randomise(ReparamConv2d(4, 7, 3))
    assert "(the model)" in str(merge(layer))
    assert str(merge(layer)).startswith("merged 0 units: 200 -> 200 parameters")
