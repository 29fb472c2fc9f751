from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from widefield.models.pelk import VARIANTS
from widefield.nn.peripheral_conv import PeripheralConv2d
from widefield.ops import SharingGrid

# Without masks and embeddings, in millions; the paper states 0.6 of them: 29M, 50M, 89M, 89M, 90M.
PARAMETERS = {"pelk_t": "47.9", "pelk_s": "84.5", "pelk_b": "149.1", "pelk_b_101": "149.6"}

# Without masks, in GMACs; the paper states 0.6 of them.
MACS = [
    ("pelk_t", (224, 224), "9.74"),
    ("pelk_s", (224, 224), "18.24"),
    ("pelk_b", (224, 224), "30.70"),
    ("pelk_b", (384, 384), "90.2"),
    ("pelk_b_101", (384, 384), "114.1"),
]

# What the paper's numbers differ by, which the heads of segmentation and detection do not change.
DIFFERENCES = [
    ("pelk_b_101", "pelk_b", (384, 384), "23.9", 14.3),
    ("pelk_b_101", "pelk_b", (512, 2048), "169.8", 102),
    ("pelk_b_101", "pelk_b", (1280, 800), "165.8", 99),
    ("pelk_s", "pelk_t", (512, 2048), "177.7", 107),
    ("pelk_s", "pelk_t", (1280, 800), "173.5", 104),
]


def fits(value: float, printed: str) -> bool:
    """Whether `value` rounds to the printed digits."""
    return f"{value:.{len(printed.partition('.')[2])}f}" == printed


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@cache
def gmacs(name: str, size: tuple[int, int]) -> float:
    """Multiply-accumulates of convolutions and linear layers for one image, with dense K x K kernels, in billions."""
    model, counts = timm.create_model(name, device="meta"), [0]

    def count(layer: Any, _: Any, output: Tensor) -> None:
        taps = layer.kernel_size**2 if isinstance(layer, PeripheralConv2d) else layer.weight[0].numel()
        counts[0] += output.numel() * taps

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | PeripheralConv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(torch.empty(1, 3, *size, device="meta"))
    return counts[0] / 1e9


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_paper(name: str) -> None:
    model = timm.create_model(name, device="meta", position="none")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert fits(parameters(model) / 1e6, PARAMETERS[name])


@pytest.mark.parametrize(("name", "millions"), [("pelk_t", "0.82"), ("pelk_b", "1.09"), ("pelk_b_101", "2.42")])
def test_embeddings_have_a_value_for_every_tap_once_for_a_stage(name: str, millions: str) -> None:
    sizes = [parameters(timm.create_model(name, device="meta", position=kind)) for kind in ("kernel", "none")]
    assert fits((sizes[0] - sizes[1]) / 1e6, millions)


@pytest.mark.parametrize(("name", "size", "printed"), MACS)
def test_multiplications_are_those_of_the_paper(name: str, size: tuple[int, int], printed: str) -> None:
    assert fits(gmacs(name, size), printed)


@pytest.mark.parametrize(("larger", "smaller", "size", "dense", "published"), DIFFERENCES)
def test_differences_of_multiplications_are_those_of_the_paper(
    larger: str, smaller: str, size: tuple[int, int], dense: str, published: float
) -> None:
    difference = gmacs(larger, size) - gmacs(smaller, size)
    assert fits(difference, dense)
    assert 0.6 * difference == pytest.approx(published, rel=0.01)


def test_our_own_small_variant_has_the_size_that_its_docstring_states() -> None:
    count = parameters(timm.create_model("pelk_a", device="meta")) / 1e6
    assert fits(count, "4.0")
    assert "4.0M parameters" in str(timm.model_entrypoint("pelk_a").__doc__)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_three_eighths_of_the_channels_are_convolved(name: str) -> None:
    model: Any = timm.create_model(name, device="meta")
    for stage, width, size in zip(model.stages, VARIANTS[name].channels, VARIANTS[name].kernel_sizes, strict=True):
        for block in stage.blocks:
            conv = block.large_kernel.conv
            assert (conv.channels, conv.kernel_size) == (int(3 / 8 * width), size)
            assert conv.grid == SharingGrid.exponential(size, 3 if name.endswith("101") else 2)
            assert conv.small.kernel_size == (5, 5)
