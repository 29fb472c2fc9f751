from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import widefield.models  # noqa: F401 - registers the models
from widefield.nn import DepthwiseConv2d, ReparamConv2d

# Millions of parameters branched and merged; GMACs merged at 224 (of which depthwise), 384, 320 pixels.
PUBLISHED = {
    "replknet_3b": ("71.91", "71.89", "12.94", "0.05", "38.0", "26.4"),
    "replknet_7b": ("72.71", "72.38", "13.06", "0.17", "38.4", "26.7"),
    "replknet_13b": ("74.16", "73.82", "13.44", "0.55", "39.5", "27.4"),
    "replknet_25b": ("78.71", "78.37", "14.81", "1.92", "43.5", "30.2"),
    "replknet_31b": ("79.86", "79.53", "15.35", "2.46", "45.12", "31.3"),
    "replknet_31l": ("172.67", "172.17", "32.66", "3.70", "95.99", "66.7"),
    "replknet_xl": ("335.44", "335.40", "63.1", "6.7", "185.4", "128.73"),
}


def fits(value: float, printed: str) -> bool:
    """Whether `value` rounds to the printed digits."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def merged_on_meta(name: str) -> nn.Module:
    """The shapes of the form whose large kernels alone are merged, without values."""
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        for layer in model.modules():
            if isinstance(layer, ReparamConv2d):
                layer.merged = DepthwiseConv2d(layer.channels, layer.kernel_size)
                layer.large = layer.small = None
    return model


def macs(model: nn.Module, size: int) -> tuple[int, int]:
    """All multiply-accumulates of convolutions and linear layers for one image, and those of depthwise ones."""
    counts = {"all": 0, "depthwise": 0}

    def count(layer: Any, _: Any, output: Tensor) -> None:
        cost = output.numel() * layer.weight[0].numel()
        counts["all"] += cost
        counts["depthwise"] += cost if getattr(layer, "groups", 1) > 1 else 0

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    for handle in handles:
        handle.remove()
    return counts["all"], counts["depthwise"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiplications_are_those_of_the_paper(name: str) -> None:
    branched, merged_count, at_224, depthwise, at_384, at_320 = PUBLISHED[name]
    model = timm.create_model(name, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert fits(parameters(model) / 1e6, branched)
    merged = merged_on_meta(name)
    assert fits(parameters(merged) / 1e6, merged_count)
    whole, part = macs(merged, 224)
    assert fits(whole / 1e9, at_224)
    assert fits(part / 1e9, depthwise)
    assert fits(macs(merged, 384)[0] / 1e9, at_384)
    assert fits(macs(merged, 320)[0] / 1e9, at_320)


@pytest.mark.parametrize(
    ("name", "millions"), [("replknet_nano", "1.7"), ("replknet_tiny", "15"), ("replknet_small", "40")]
)
def test_our_own_small_variants_have_the_sizes_that_their_docstrings_state(name: str, millions: str) -> None:
    assert fits(parameters(timm.create_model(name, device="meta")) / 1e6, millions)
    assert f"{millions}M parameters" in str(timm.model_entrypoint(name).__doc__)
