"""What may stand behind a large kernel to make a network deeper: UniRepLKNet's guideline on block design.

"UniRepLKNet" (Ding et al., CVPR 2024), section 3.1, compares a bottleneck, two 1 x 1 convolutions, two depthwise 3 x 3
convolutions and squeeze-and-excitation with nothing at all.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal, get_args

import torch
from torch import nn

from widefield._core.checks import check_name
from widefield.nn.conv_norm import ConvNorm2d

ExtraStructure = Literal["none", "bottleneck", "pointwise", "depthwise", "se"]
EXTRA_STRUCTURES: tuple[ExtraStructure, ...] = get_args(ExtraStructure)


def extra_convolutions(
    structure: ExtraStructure,
    channels: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential | None:
    """Return the convolutions of a structure, (N, C, H, W) -> (N, C, H, W); none for "none" and "se".

    * "bottleneck": 1 x 1 to C / 4 channels, depthwise 3 x 3, 1 x 1 back.
    * "pointwise": 1 x 1 to C / 4 channels, 1 x 1 back.
    * "depthwise": depthwise 3 x 3 twice.

    The paper prints what these cost and no more. Its parameters fit a width of C / 4 in both of the first two, as in
    the squeeze-and-excitation beside them, in every block of all four stages. Our reading of the rest: each convolution
    is bias-free and ends in a BatchNorm, there is a ReLU between two of them and none behind the last, as in the
    squeeze-and-excitation, and no shortcut within that of the block.

    Args:
        structure: Which one.
        channels: C.
        device: Where to put the parameters.
        dtype: Their type.

    Raises:
        InputError: If there is no such structure.
    """
    check_name(structure, EXTRA_STRUCTURES, "structure")
    factory: dict[str, Any] = {"device": device, "dtype": dtype}
    narrow = max(channels // 4, 1)
    relu: dict[str, Any] = {"activation": nn.ReLU, **factory}
    spatial: dict[str, Any] = {"kernel_size": 3, "depthwise": True}
    layers: dict[ExtraStructure, tuple[tuple[str, tuple[int, int], dict[str, Any]], ...]] = {
        "bottleneck": (
            ("reduce", (channels, narrow), relu),
            ("depthwise", (narrow, narrow), {**spatial, **relu}),
            ("expand", (narrow, channels), factory),
        ),
        "pointwise": (("reduce", (channels, narrow), relu), ("expand", (narrow, channels), factory)),
        "depthwise": (
            ("first", (channels, channels), {**spatial, **relu}),
            ("second", (channels, channels), {**spatial, **factory}),
        ),
    }
    if structure not in layers:
        return None
    return nn.Sequential(
        OrderedDict((name, ConvNorm2d(*widths, **options)) for name, widths, options in layers[structure])
    )
