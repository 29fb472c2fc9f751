from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from support.random_statistics import randomise
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.checkpoints.keymap import Rule, rename
from widefield.models.convnext_lk import VARIANTS, ConvNeXtLK
from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.nn.reparam_conv import ReparamConv2d
from widefield.reparam import merge

# Millions of parameters; GMACs that the large kernels add; all of them, as the docstrings state.
DERIVED = {
    "convnext_lk_t": ("31.93", "1.66", "6.1"),
    "convnext_lk_s": ("58.27", "2.58", "11.3"),
    "convnext_lk_b": ("99.3", "3.44", "18.8"),
}
TIMM = {"convnext_lk_t": "convnext_tiny", "convnext_lk_s": "convnext_small", "convnext_lk_b": "convnext_base"}

_BLOCK = "stages.<s>.blocks.<b>"
NAMES_IN_TIMM = (
    Rule(f"{_BLOCK}.conv_dw.<rest>", f"{_BLOCK}.large_kernel.<rest>"),
    Rule(f"{_BLOCK}.mlp.fc<n>.<rest>", f"{_BLOCK}.fc<n>.<rest>"),
    Rule(f"{_BLOCK}.<rest>", f"{_BLOCK}.<rest>"),
    Rule("head.norm.<rest>", "norm.<rest>"),
    Rule("head.fc.<rest>", "head.fc.<rest>"),
    Rule("stem.<rest>", "stem.<rest>"),
    Rule("stages.<s>.downsample.<rest>", "stages.<s>.downsample.<rest>"),
)


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"channels": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_classes": 10, "layer_scale": 1.0}
    return timm.create_model("convnext_lk_t", **{**sizes, **options})


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


@torch.no_grad()
def test_with_kernels_of_seven_it_is_the_network_of_timm() -> None:
    torch.manual_seed(0)
    theirs: Any = timm.create_model("convnext_tiny", num_classes=10).double().eval()
    for name, parameter in theirs.named_parameters():
        if parameter.dim() == 1:
            # Norms, biases and layer scales as after a training: their first values would hide mistakes.
            parameter.copy_(torch.rand_like(parameter) + (0.0 if name.endswith("bias") else 0.5))
    ours: Any = timm.create_model("convnext_lk_t", kernel_sizes=(7, 7, 7, 7), num_classes=10, device="meta").eval()
    ours.load_state_dict(rename(theirs.state_dict(), NAMES_IN_TIMM, to_ours=True, source="timm"), assign=True)
    x = images(torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-12)
    stages = [model.forward_intermediates(x, intermediates_only=True) for model in (ours, theirs)]
    for actual, expected in zip(*stages, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DERIVED)
def test_parameters_and_multiplications_are_the_derived_ones(name: str) -> None:
    millions, extra, gmacs = DERIVED[name]
    model = timm.create_model(name, device="meta")
    assert all(value.is_meta for value in model.state_dict().values())
    assert fits(parameters(model) / 1e6, millions)
    whole = macs(model)
    with torch.device("meta"):
        small = timm.create_model(TIMM[name])
    assert fits((whole - macs(small)) / 1e9, extra)
    assert fits(whole / 1e9, gmacs)
    assert f"{gmacs} GMACs" in str(timm.model_entrypoint(name).__doc__)
    assert list(VARIANTS) == list(DERIVED)


@pytest.mark.parametrize("small", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_merged_network_is_the_same_function(small: int | None, dtype: torch.dtype) -> None:
    model = randomise(make(small_kernel_size=small, dtype=dtype))
    kernels = [block.large_kernel for stage in model.stages for block in stage.blocks]
    assert all(isinstance(kernel, DepthwiseConv2d if small is None else ReparamConv2d) for kernel in kernels)
    x = images(dtype)
    report = merge(model, x)
    assert len(report.unit_errors) == 5
    assert report.relative_error < (1e-5 if dtype == torch.float32 else 1e-12)
    assert merge(model, x).unit_errors == ()


@pytest.mark.parametrize("small", [None, 5])
def test_every_parameter_gets_a_gradient(small: int | None) -> None:
    model = make(small_kernel_size=small).train()
    (model(images()) * torch.randn(10, generator=torch.Generator().manual_seed(2))).sum().backward()
    idle = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


def test_a_stage_with_a_kernel_no_larger_than_the_small_one_has_no_small_one() -> None:
    model = make(kernel_sizes=(7, 5, 3, 13), small_kernel_size=5)
    smalls = [stage.blocks[0].large_kernel.small is not None for stage in model.stages]
    assert smalls == [True, False, False, True]


def test_features_come_at_strides_4_to_32() -> None:
    model = make(features_only=True, feature_norms=True).eval()
    shapes = [tuple(y.shape) for y in model(images())]
    assert shapes == [(2, 8, 24, 16), (2, 16, 12, 8), (2, 24, 6, 4), (2, 32, 3, 2)]


def test_our_own_weights_come_from_a_file(tmp_path: Any) -> None:
    source = make().eval()
    torch.save(source.state_dict(), tmp_path / "ours.pth")
    overlay = {"file": str(tmp_path / "ours.pth"), "num_classes": 10}
    same = make(pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(same(images()), source(images()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"kernel_sizes": (31, 29, 27)},
            "Expected one width, one depth and one kernel size for each stage, "
            "but got 4 widths, 4 depths and 3 kernel sizes: give as many of each.",
        ),
        ({"kernel_sizes": (31, 29, 27, 12)}, "Expected an odd kernel size, but got 12: use 13."),
        ({"small_kernel_size": 4}, "Expected a small kernel of odd size up to 31, but got 4: use"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        ConvNeXtLK(device="meta", **options)


def fits(value: float, printed: str) -> bool:
    """Whether `value` rounds to the printed digits."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image of 224 pixels."""
    counts: list[int] = []

    def count(layer: Any, _: Any, output: Tensor) -> None:
        counts.append(output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return sum(counts)
