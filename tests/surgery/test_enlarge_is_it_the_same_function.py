"""Networks of others: unchanged by an enlargement, trainable in every tap, and merged to plain large kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from support.random_statistics import randomise
from torch import Tensor, nn

from widefield import merge
from widefield.nn import DepthwiseConv2d
from widefield.surgery import METHODS, EnlargedConv2d, EnlargeReport, enlarge

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    kernel_size: int
    options: dict[str, Any]
    layers: int


def first_layer(name: str, conv: nn.Conv2d) -> bool:
    return name.startswith("layer1") and conv.kernel_size == (3, 3)


def encoder_start_and_decoder(name: str, conv: nn.Conv2d) -> bool:
    return name.startswith(("encoder.layer1", "decoder")) and conv.kernel_size == (3, 3)


def small_unet() -> nn.Module:
    return smp.Unet("resnet18", encoder_weights=None, decoder_channels=(64, 32, 32, 16, 16))


CASES = {
    "convnext": Case(lambda: timm.create_model("convnext_tiny", num_classes=10, ls_init_value=1.0), 13, {}, 18),
    "mobilenet": Case(lambda: timm.create_model("mobilenetv2_100", num_classes=10), 9, {}, 17),
    "tensorflow": Case(lambda: timm.create_model("tf_mobilenetv3_small_075", num_classes=10), 9, {}, 11),
    "torchvision": Case(lambda: torchvision.models.mobilenet_v2(num_classes=10), 9, {}, 17),
    "resnet": Case(lambda: timm.create_model("resnet50", num_classes=10), 7, {"where": first_layer}, 3),
    "unet": Case(small_unet, 5, {"where": encoder_start_and_decoder}, 14),
}
DENSE = ("resnet", "unet")
RUNS = [(name, method) for name in CASES for method in (METHODS[:2] if name in DENSE else METHODS)]


@cache
def drawn(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(CASES[name].make())


@cache
def example() -> Tensor:
    return torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(name: str, method: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor, EnlargeReport]:
    """Return an enlarged network, its input, the output that it had before, and the report."""
    case = CASES[name]
    model, x = copy.deepcopy(drawn(name)).to(dtype), example().to(dtype)
    with torch.no_grad():
        before = model(x)
    return model, x, before, enlarge(model, case.kernel_size, method, **case.options)  # type: ignore[arg-type]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("name", "method"), RUNS)
def test_the_output_is_kept_the_outer_taps_learn_and_merging_gives_plain_convolutions(name: str, method: str) -> None:
    model, x, before, report = made(name, method, torch.float64)
    case = CASES[name]
    assert len(report.layers) == case.layers
    assert all(layer.kernel_size == (case.kernel_size,) * 2 for layer in report.layers)
    y = model(x)
    assert relative_error(y, before) < LIMIT[torch.float64]

    first = model.get_submodule(report.layers[0].name)
    assert isinstance(first, EnlargedConv2d)
    assert first.kernel is not None
    y.pow(2).mean().backward()
    torch.optim.SGD(first.kernel.parameters(), lr=1.0).step()
    outer = first.weight.detach().clone()
    old = report.layers[0].old_kernel_size[0]
    margin = (case.kernel_size - old) // 2
    assert outer[..., case.kernel_size // 2, 0].any()
    assert outer[..., :margin, :].any()

    # Further steps of a size that would show an error, in every layer.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in report.layers:
            for parameter in model.get_submodule(layer.name).parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    assert merge(model, x).relative_error < LIMIT[torch.float64]
    for layer in report.layers:
        plain = model.get_submodule(layer.name)
        assert not isinstance(plain, EnlargedConv2d)
        assert type(plain).__name__ in ("Conv2d", "DepthwiseConv2d", "Conv2dSame")
        assert tuple(plain.weight.shape[2:]) == (case.kernel_size,) * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "method"), [*zip(CASES, (*METHODS, *METHODS), strict=False)][:4] + [("unet", "dense")]
)
def test_float32_is_kept_to_its_rounding_error(name: str, method: str) -> None:
    model, x, before, _ = made(name, method, torch.float32)
    with torch.no_grad():
        assert relative_error(model(x), before) < LIMIT[torch.float32]
    assert merge(model, x).relative_error < LIMIT[torch.float32]
    with torch.no_grad():
        assert relative_error(model(x), before) < LIMIT[torch.float32]


def test_parameters_are_counted_before_after_and_merged() -> None:
    model, x, _, report = made("mobilenet", "dilated", torch.float32)
    assert report.parameters_before == sum(p.numel() for p in drawn("mobilenet").parameters())
    assert report.parameters_after == sum(p.numel() for p in model.parameters())
    for layer in report.layers:
        old = drawn("mobilenet").get_submodule(layer.name)
        assert layer.parameters_before == sum(p.numel() for p in old.parameters())
        assert layer.parameters_after == sum(p.numel() for p in model.get_submodule(layer.name).parameters())
    merge(model, x)
    for layer in report.layers:
        assert layer.merged_parameters == sum(p.numel() for p in model.get_submodule(layer.name).parameters())
    assert len(report.as_dict()["layers"]) == 17
    text = str(report).splitlines()
    assert text[0].startswith("enlarged 17 convolutions: ")
    assert text[1].startswith("  blocks.0.0.conv_dw: 3x3 -> 9x9 dilated, 288 -> ")
    assert "left as it is, 34 times: it has a single tap (to be chosen with where=)" in text


def test_an_enlarged_network_is_copied_and_loads_what_was_saved_of_another_and_of_the_original() -> None:
    model, x, before, _ = made("mobilenet", "decomposed", torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
        trained = model(x)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), trained)
    other, *_ = made("mobilenet", "decomposed", torch.float32)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x), trained)
    other.load_state_dict(drawn("mobilenet").state_dict())
    with torch.no_grad():
        assert relative_error(other(x), before) < LIMIT[torch.float32]


def test_training_mode_and_half_precision_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4)).bfloat16()
    model.requires_grad_(False)
    enlarge(model, 7)
    layer = model[0]
    assert layer.training
    assert isinstance(layer, EnlargedConv2d)
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())
    model.eval()
    merge(model, torch.randn(1, 4, 9, 9, dtype=torch.bfloat16))
    assert isinstance(model[0], DepthwiseConv2d)
    assert isinstance(model[1], nn.Identity), "one pass folds the norm too"
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())


def test_the_size_may_depend_on_the_layer() -> None:
    model = timm.create_model("mobilenetv2_100", num_classes=10).eval()
    sizes = {"blocks.0.0.conv_dw": 13, "blocks.1.0.conv_dw": 7}
    report = enlarge(model, lambda name, conv: sizes.get(name), "dense")
    assert {layer.name: layer.kernel_size[0] for layer in report.layers} == sizes
    reasons = {layer.name: layer.reason for layer in report.skipped}
    assert reasons["blocks.1.1.conv_dw"] == "kernel_size gave none for it"


def test_a_kernel_can_be_grown_again_once_it_is_merged() -> None:
    model = timm.create_model("mobilenetv2_100", num_classes=10).double().eval()
    x = example().double()
    with torch.no_grad():
        before = model(x)
    enlarge(model, 5)
    with pytest.raises(ValueError, match="it is enlarged already: merge it first"):
        enlarge(model, 7)
    merge(model, x)
    assert len(enlarge(model, 7).layers) == 17
    with torch.no_grad():
        assert relative_error(model(x), before) < LIMIT[torch.float64]
