from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from widefield.bench.cases import (
    IMAGE_SIZES,
    MOST_ELEMENTS,
    dense_prediction_layers,
    grid,
    layers_of,
    published_layers,
)
from widefield.bench.variants import VARIANTS


def shapes_in(model: nn.Module, size: int) -> set[tuple[int, ...]]:
    """(C, H, W, K_h, K_w, stride) of every depthwise convolution that runs."""
    found: set[tuple[int, ...]] = set()

    def note(module: nn.Conv2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        x = inputs[0]
        if module.groups == x.shape[1] > 3:
            found.add((*x.shape[1:], *module.kernel_size, module.stride[0]))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return found


@pytest.mark.parametrize(
    ("variant", "model"),
    [
        ("RepLKNet-31B", "replknet_31b"),
        ("RepLKNet-XL", "replknet_xl"),
        ("RepLKNet-3", "replknet_3b"),
        ("ConvNeXt-B", "convnext_base"),
    ],
)
def test_the_layers_are_those_of_the_network(variant: str, model: str) -> None:
    import widefield.models  # noqa: F401 - registers ours

    layers = layers_of(next(v for v in VARIANTS if v.name == variant), 224, 224)
    listed = {(layer.channels, layer.height, layer.width, *layer.kernel_size, layer.stride) for layer in layers}
    with torch.device("meta"):
        network = timm.create_model(model).eval()
    assert listed == shapes_in(network, 224)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("SLaK-T", (124, 249, 499, 998)),
        ("SLaK-B", (166, 332, 665, 1331)),
        ("PeLK-T", (46, 93, 187, 374)),
        ("PeLK-B-101", (62, 124, 249, 499)),
        ("UniRepLKNet-XL", (256, 512, 1024, 2048)),
        ("RepLKNet-XL", (384, 768, 1536, 3072)),
    ],
)
def test_widths_are_the_published_ones(name: str, channels: tuple[int, ...]) -> None:
    assert next(v for v in VARIANTS if v.name == name).channels == channels


def test_stripes_and_mixed_stages_are_there() -> None:
    by_name = {v.name: v for v in VARIANTS}
    assert by_name["SLaK-T"].kernels[0] == ((51, 5), (5, 51), (5, 5))
    assert by_name["UniRepLKNet-T"].kernels == (((3, 3),), ((13, 13),), ((13, 13), (3, 3)), ((13, 13),))
    assert by_name["PeLK-B-101"].kernels[0] == ((101, 101),)


def test_every_layer_names_its_source_and_both_image_sizes_are_there() -> None:
    layers = published_layers()
    assert all(layer.source and layer.name for layer in layers)
    assert {layer.height for layer in layers if "ConvNeXt-T stage 1" in layer.name} == {s // 4 for s in IMAGE_SIZES}
    largest = max(dense_prediction_layers(), key=lambda layer: layer.height if layer.kernel_size[0] > 3 else 0)
    assert (largest.height, largest.width) == (200, 304)


def test_the_grid_has_each_problem_once_and_small_ones_first() -> None:
    problems = grid()
    assert len(problems) >= 200
    assert len(set(problems)) == len(problems)
    assert [p.macs for p in problems] == sorted(p.macs for p in problems)
    assert {p.batch for p in problems} == {1, 8, 32}
    assert max(p.batch * p.channels * p.height * p.width for p in problems) <= MOST_ELEMENTS
    assert {(3, 3), (5, 5), (7, 7), (31, 31), (51, 5), (5, 51), (101, 101)} <= {p.kernel_size for p in problems}
    assert all(p.output_size == (p.height // p.stride[0], p.width // p.stride[1]) for p in problems)
