"""RepLKNet's Table 4 (K = 9 from Table 2 of UniRepLKNet's extension): parameters and MFLOPs to the printed digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from widefield.models.mobilenetv2_lk import InvertedResidual, MobileNetV2LK
from widefield.nn import ReparamConv2d

# K of the last stage: millions of parameters, MFLOPs
PRINTED = {3: ("2.64", "214.5"), 7: ("2.67", "215.9"), 9: ("2.69", "217.1"), 13: ("2.75", "220.2")}


def make(**options: Any) -> MobileNetV2LK:
    # The printed counts are of merged kernels, whose norm stands: the network without the parallel ones.
    given = {"width_mult": 0.75, "small_kernel_size": None, "device": "meta", **options}
    return MobileNetV2LK(**given)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def operations(model: MobileNetV2LK) -> dict[str, int]:
    """Return the products of a 224-pixel image and the additions of shortcuts and pooling."""
    added = {"shortcut": 0, "pool": 0}

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, InvertedResidual):
            added["shortcut"] += output.numel() if module.has_shortcut else 0
        else:
            added["pool"] += inputs[0].numel()

    for module in (*(m for m in model.modules() if isinstance(m, InvertedResidual)), model.head.global_pool):
        module.register_forward_hook(count)
    counter: Any = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return {"products": counter.get_total_flops() // 2, **added}


@pytest.mark.parametrize("size", PRINTED)
def test_parameters_and_operations_are_the_printed_ones(size: int) -> None:
    model = make(kernel_sizes=(3, 3, 3, 3, 3, size), scale_stem=False)
    found = f"{parameters(model) / 1e6:.2f}", f"{sum(operations(model).values()) / 1e6:.1f}"
    assert found == PRINTED[size]


def test_with_a_scaled_first_convolution_only_the_parameters_are() -> None:
    for size, (millions, mflops) in PRINTED.items():
        model = make(kernel_sizes=(3, 3, 3, 3, 3, size))
        assert f"{parameters(model) / 1e6:.2f}" == millions
        counted = sum(operations(model).values()) / 1e6
        assert float(mflops) - counted == pytest.approx(5.22, abs=0.06)


def test_the_figures_of_the_docstring() -> None:
    kept, scaled = make(kernel_sizes=(3,) * 4, scale_stem=False), make(kernel_sizes=(3,) * 4)
    assert (parameters(kept), parameters(scaled)) == (2_636_872, 2_636_424)
    assert operations(kept) == {"products": 214_288_096, "shortcut": 181_104, "pool": 62_720}
    assert sum(operations(scaled).values()) == 209_313_616


def test_six_sizes_are_those_of_the_widths_and_strided_layers_stay() -> None:
    model = make(kernel_sizes=(5, 7, 9, 11, 13, 15), small_kernel_size=3, width_mult=1.0)
    sizes = [
        [layer.kernel_size for layer in stage.modules() if isinstance(layer, ReparamConv2d)] for stage in model.stages
    ]
    assert sizes == [[5], [7] * 2, [9] * 3 + [11] * 3, [13] * 2 + [15]]
    by_stride = make(kernel_sizes=(5, 7, 9, 13), width_mult=1.0)
    by_width = make(kernel_sizes=(5, 7, 9, 9, 13, 13), width_mult=1.0)
    assert {k: v.shape for k, v in by_stride.state_dict().items()} == {
        k: v.shape for k, v in by_width.state_dict().items()
    }


def test_dilations_can_be_given_by_width_too() -> None:
    model = make(kernel_sizes=(3,) * 4, dilation=(1, 1, 1, 2, 1, 4))
    gaps = [module.dilation[0] for stage in model.stages for module in stage.modules() if isinstance(module, nn.Conv2d)]
    assert sorted(gap for gap in gaps if gap > 1) == [2, 2, 2, 4]
