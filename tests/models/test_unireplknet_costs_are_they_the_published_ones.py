from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from widefield.models.unireplknet import VARIANTS, UniRepLKNetBlock
from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.nn.dilated_reparam_conv import DilatedReparamConv2d

# Parameters branched and merged; GMACs merged at 224 and 384 pixels.
PUBLISHED = {
    "unireplknet_a": (4_649_060, 4_437_300, 0.64, 1.88),
    "unireplknet_f": (6_489_328, 6_235_216, 0.91, 2.66),
    "unireplknet_p": (11_080_520, 10_741_704, 1.57, 4.62),
    "unireplknet_n": (18_818_880, 18_318_560, 2.77, 8.13),
    "unireplknet_t": (31_693_420, 31_037_980, 4.90, 14.4),
    "unireplknet_s": (56_456_704, 55_645_984, 9.09, 26.72),
    "unireplknet_b": (99_089_416, 98_008_456, 16.06, 47.18),
    "unireplknet_l": (220_076_056, 218_454_616, 35.9, 105.42),
    "unireplknet_xl": (388_690_984, 386_529_064, 63.6, 186.77),
}

# Kernel sizes of the third stage's blocks; 13, 3, 3 nine times in the others.
THIRD_STAGE = {
    "unireplknet_a": [13] * 6,
    "unireplknet_f": [13] * 6,
    "unireplknet_p": [13] * 6,
    "unireplknet_n": [13] * 8,
    "unireplknet_t": [13, 3] * 9,
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def merge_shapes(model: nn.Module) -> None:
    """Give a network without values the shapes of its merged form."""
    for block in model.modules():
        if not isinstance(block, UniRepLKNetBlock):
            continue
        kernel = block.large_kernel
        conv = kernel.large.conv if isinstance(kernel, DilatedReparamConv2d) else kernel
        assert isinstance(conv, DepthwiseConv2d)
        block.large_kernel = DepthwiseConv2d(conv.in_channels, sizes(conv), device="meta")
        block.fc2 = nn.Linear(block.fc2.in_features, block.fc2.out_features, device="meta")
        block.norm = block.final_norm = nn.Identity()
        block.gamma = block.response_norm.beta = None


def sizes(conv: nn.Conv2d) -> tuple[int, int]:
    return conv.kernel_size[0], conv.kernel_size[1]


def macs(model: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image."""
    count = 0

    def add(layer: Any, _: Any, output: Tensor) -> None:
        nonlocal count
        count += output.numel() * layer.weight[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    for handle in handles:
        handle.remove()
    return count


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiplications_are_those_of_the_paper(name: str) -> None:
    branched, merged_count, at_224, at_384 = PUBLISHED[name]
    model = timm.create_model(name, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert parameters(model) == branched
    merge_shapes(model.eval())
    assert parameters(model) == merged_count
    assert macs(model, 224) / 1e9 == pytest.approx(at_224, rel=0.01)
    assert macs(model, 384) / 1e9 == pytest.approx(at_384, rel=0.01)
    third = [block.large_kernel for block in model.get_submodule("stages.2.blocks").children()]
    assert [sizes(conv)[0] for conv in third if isinstance(conv, nn.Conv2d)] == THIRD_STAGE.get(name, [13, 3, 3] * 9)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_docstrings_state_these_figures(name: str) -> None:
    _, merged_count, at_224, at_384 = PUBLISHED[name]
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    size = config.input_size[-1]
    stated = re.search(
        r"([\d.]+)M parameters merged, ([\d.]+) GMACs at (\d+) pixels", str(timm.model_entrypoint(name).__doc__)
    )
    assert stated is not None
    assert float(stated[1]) == round(merged_count / 1e6, 1)
    assert int(stated[3]) == size
    assert float(stated[2]) == pytest.approx({224: at_224, 384: at_384}[size], rel=0.002)
