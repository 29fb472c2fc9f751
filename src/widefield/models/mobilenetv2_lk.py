"""MobileNetV2 (Sandler et al., CVPR 2018) with large kernels, on which RepLKNet's guidelines were found.

"Scaling Up Your Kernels to 31x31" (Ding et al., CVPR 2022), section 3, Tables 2 to 4 and 12: kernel size by stage,
re-parameterization, shortcut, and dilated against dense kernels. No code of these studies was published. Here a stage's
kernel size is that of the inverted residuals that run at the stage's resolution, or of those of one width; the strided
ones and the one in the stem stay with 3 x 3. With 3 x 3 everywhere this is MobileNetV2 itself.

Table 4 prints 2.64, 2.67, 2.69 and 2.75 M parameters and 214.5, 215.9, 217.1 and 220.2 MFLOPs for last kernels of 3, 7,
9 and 13 (9 in UniRepLKNet's extension, arXiv 2410.08049, Table 2). The differences are those of one layer of 720
channels at 7 x 7: a width of 0.75 with the single inverted residual of width 320 (240 here) as the last stage.
Parameters and MFLOPs together fit to every digit if the first convolution keeps its 32 channels (`scale_stem=False`;
2,636,872 parameters at K = 3), large and parallel kernel are merged, norms are counted, and so are the additions of
shortcuts and pooling beside the products (214.53 MFLOPs). With a first convolution of 24 channels the parameters fit
too (2,636,424), but products and these additions make 209.31; 214.53 is then reached only by an operation for each
output of a ReLU6 and two for each pooled element. The width sits ill with the score: 71.76 % at K = 3, where the
networks that the authors of MobileNetV2 released have 69.8 % at 0.75 and 71.8 % at 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from timm.layers import DropPath, make_divisible
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.models._backbone import HierarchicalBackbone, Stage, drop_path_rates
from widefield.models._entry_points import build, configurations
from widefield.nn import ConvNorm2d, ReparamConv2d
from widefield.reparam import check_evaluation_mode

__all__ = ["MobileNetV2LK"]

LAYOUT = (((24, 2),), ((32, 3),), ((64, 4), (96, 3)), ((160, 3), (320, 1)))
"""Widths of each stage, and how many inverted residuals have them; the first of a stage has stride 2."""

STEM, FIRST, HEAD = 32, 16, 1280
"""Widths of the first convolution, of the inverted residual after it, and before the classifier."""

EXPAND_RATIO = 6
"""Width of the depthwise convolutions over that of the block's input."""


class InvertedResidual(nn.Module):
    """``x + pointwise(ReLU6(depthwise(ReLU6(pointwise(x)))))``, each with its BatchNorm.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: K of the depthwise convolution; odd.
        small_kernel_size: k of a parallel kernel, or none.
        stride: Step of the depthwise convolution in pixels.
        dilation: Distance between its taps in pixels.
        expand_ratio: Width of the depthwise convolution over `in_channels`; with 1 there is no first pointwise one.
        shortcut: Whether the input is added where input and output have the same shape.
        drop_path: Probability of dropping what is added to the input, for a sample.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        small_kernel_size: int | None = None,
        *,
        stride: int = 1,
        dilation: int = 1,
        expand_ratio: int = EXPAND_RATIO,
        shortcut: bool = True,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = in_channels * expand_ratio
        self.conv1 = (
            nn.Identity() if expand_ratio == 1 else ConvNorm2d(in_channels, hidden, activation=nn.ReLU6, **factory)
        )
        if stride == dilation == 1:
            self.large_kernel = ReparamConv2d(hidden, kernel_size, small_kernel_size, **factory)
        else:
            self.large_kernel = ConvNorm2d(
                hidden, hidden, kernel_size, stride=stride, dilation=dilation, depthwise=True, **factory
            )
        self.activation = nn.ReLU6()
        self.conv2 = ConvNorm2d(hidden, out_channels, **factory)
        self.has_shortcut = shortcut and stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop_path) if drop_path and self.has_shortcut else nn.Identity()

    @property
    def is_merged(self) -> bool:
        """Whether branches and norms have been folded."""
        return all(part.is_merged for part in self._parts())

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        y = self.conv2(self.activation(self.large_kernel(self.conv1(x))))
        return x + self.drop_path(y) if self.has_shortcut else y

    def reparameterize(self) -> None:
        """Fold branches and norms, in place.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        for part in self._parts():
            part.reparameterize()

    def _parts(self) -> list[ConvNorm2d | ReparamConv2d]:
        parts = (self.conv1, self.large_kernel, self.conv2)
        return [part for part in parts if isinstance(part, ConvNorm2d | ReparamConv2d)]


class MobileNetV2LK(HierarchicalBackbone):
    """MobileNetV2 with a kernel size, and a dilation, for each resolution.

    Args:
        kernel_sizes: K at strides 4, 8, 16 and 32, or, six of them, at the widths 24, 32, 64, 96, 160 and 320; odd.
        small_kernel_size: k of the parallel kernels, or none. A stage whose K is not larger, or that is dilated, has
            none either.
        dilation: Distance between taps in pixels, at the same four or six places.
        shortcut: Whether inverted residuals add their input.
        width_mult: Factor on all widths, which are rounded to multiples of 8; the 1280 before the classifier only grow.
        scale_stem: Whether it holds for the first convolution too, which else keeps its 32 channels.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path probability of the last block with a shortcut; it grows linearly from 0 at the first.
        device: Where to put the parameters ("meta" makes none).
        dtype: Their type.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes); stages at H / 4, H / 8, H / 16, H / 32.

    Raises:
        InputError: If there are not four or six kernel sizes and dilations, a dilation is below 1, or as
            `ReparamConv2d`.
    """

    def __init__(
        self,
        kernel_sizes: Sequence[int] = (3, 3, 3, 13),
        small_kernel_size: int | None = 3,
        dilation: Sequence[int] = (1, 1, 1, 1),
        shortcut: bool = True,
        width_mult: float = 1.0,
        scale_stem: bool = True,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, values in (("kernel sizes", kernel_sizes), ("dilations", dilation)):
            check(
                len(values) in (len(LAYOUT), sum(map(len, LAYOUT))),
                f"4 or 6 {name}",
                f"{len(values)} ({', '.join(map(str, values))})",
                "give one for each of the strides 4, 8, 16 and 32, or of the widths 24, 32, 64, 96, 160 and 320",
            )
        check(min(dilation) > 0, "dilations of at least 1", ", ".join(map(str, dilation)), "use 1 for a dense kernel")
        check(
            all(size % 2 == 1 for size in kernel_sizes),
            "odd kernel sizes",
            ", ".join(map(str, kernel_sizes)),
            f"use {', '.join(str(size | 1) for size in kernel_sizes)}",
        )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        first = _scaled(FIRST, width_mult)
        widths = [[_scaled(base, width_mult) for base, count in groups for _ in range(count)] for groups in LAYOUT]
        repeats = [[out == width for width, out in pairwise(stage)] for stage in widths]
        rates = drop_path_rates(drop_path_rate, [sum(stage) for stage in repeats])
        stages: list[Stage] = []
        width = first

        def parallel(size: int, gap: int) -> int | None:
            return (
                small_kernel_size if small_kernel_size is not None and small_kernel_size < size and gap == 1 else None
            )

        places = zip(_of_blocks(kernel_sizes), _of_blocks(dilation), strict=True)
        for index, (sizes, gaps) in enumerate(places):
            stage_rates = iter(rates[index])
            downsample = InvertedResidual(width, widths[index][0], stride=2, **factory)
            blocks = [
                InvertedResidual(
                    width,
                    out,
                    size,
                    parallel(size, gap),
                    dilation=gap,
                    shortcut=shortcut,
                    drop_path=next(stage_rates) if is_repeat else 0.0,
                    **factory,
                )
                for (width, out), is_repeat, size, gap in zip(
                    pairwise(widths[index]), repeats[index], sizes, gaps, strict=True
                )
            ]
            stages.append(Stage(downsample, blocks))
            width = widths[index][-1]
        head = max(HEAD, _scaled(HEAD, width_mult))
        super().__init__(
            stem=_stem(in_chans, _scaled(STEM, width_mult) if scale_stem else STEM, first, factory),
            stages=stages,
            norm=ConvNorm2d(width, head, activation=nn.ReLU6, **factory),
            channels=[stage[-1] for stage in widths],
            head_channels=head,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **factory,
        )
        self._initialise()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return one layer group for each inverted residual; with `coarse`, one for each stage."""
        blocks = [(r"^stages\.(\d+)\.downsample", None), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def _initialise(self) -> None:
        """Draw convolutions from N(0, 2 / fan out) (He et al., 2015) and the classifier from N(0, 0.01^2)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)


def _scaled(width: int, factor: float) -> int:
    return make_divisible(width * factor, 8)


def _of_blocks(values: Sequence[int]) -> list[list[int]]:
    """Return the value of each inverted residual of each stage but its first one, which has stride 2."""
    is_by_width = len(values) > len(LAYOUT)
    remaining = iter(values)
    stages = []
    for groups in LAYOUT:
        given = [next(remaining) for _ in groups] if is_by_width else [next(remaining)] * len(groups)
        stages.append([value for value, (_, count) in zip(given, groups, strict=True) for _ in range(count)][1:])
    return stages


def _stem(in_chans: int, width: int, out_channels: int, factory: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm2d(in_chans, width, 3, stride=2, activation=nn.ReLU6, **factory),
        InvertedResidual(width, out_channels, expand_ratio=1, **factory),
    )


@dataclass(frozen=True)
class _Variant:
    kernel_sizes: tuple[int, ...] = (3, 3, 3, 13)
    small_kernel_size: int | None = 3


VARIANTS = {"mobilenetv2_lk": _Variant()}

default_cfgs = generate_default_cfgs(configurations(VARIANTS, "stem.0.conv"))


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> MobileNetV2LK:
    return build(MobileNetV2LK, VARIANTS, name, pretrained, settings)


@register_model
def mobilenetv2_lk(pretrained: bool = False, **kwargs: Any) -> MobileNetV2LK:
    """MobileNetV2 with K = 13 beside 3 in the last stage (RepLKNet, Table 4)."""
    return _create("mobilenetv2_lk", pretrained, kwargs)
