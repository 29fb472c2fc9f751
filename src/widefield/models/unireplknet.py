"""UniRepLKNet: "A Universal Perception Large-Kernel ConvNet ..." (Ding et al., CVPR 2024).

The variants A to XL are the published networks; H of the journal version is not in the published code and left out.
Differences from the published code: every depthwise convolution runs on `widefield.ops`, kernels may have any odd size,
merging works in every dtype, and SyncBatchNorm is the trainer's choice. Published state dicts, branched and merged, are
read and written through `widefield.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from widefield._core.checks import check, check_name
from widefield.models._backbone import check_stages, drop_path_rates
from widefield.models._convnext import EPS, ConvNeXtBackbone
from widefield.models._entry_points import build, configurations
from widefield.nn.conv_norm import ConvNorm2d
from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.nn.dilated_reparam_conv import BRANCH_SETS, BranchSet, DilatedReparamConv2d
from widefield.nn.extra_structure import ExtraStructure, extra_convolutions
from widefield.nn.response_norm import GlobalResponseNorm
from widefield.nn.squeeze_excite import SqueezeExcite
from widefield.reparam import (
    check_evaluation_mode,
    fold_affine_after,
    fold_affine_before,
    fold_after,
    folded_after,
    set_parameters,
)
from widefield.reparam.algebra import as_double

__all__ = ["UniRepLKNet"]

SMALLEST_WITH_BRANCHES = 7
"""K from which a block's convolution has dilated branches."""


class UniRepLKNetBlock(nn.Module):
    """``x + gamma * BN(fc2(GRN(GELU(fc1(SE(BN(large_kernel(x))))))))``, with another structure in place of SE if asked.

    Args:
        channels: C.
        kernel_size: K, odd: with dilated branches from 7 on, a plain depthwise convolution below; 0 for none, and then
            no norm after it.
        ffn_ratio: Width between the two linear layers over C.
        layer_scale: First value of gamma; none for a block without it.
        drop_path: Probability of dropping the residual branch of a sample.
        extra_structure: What stands behind the norm of the large kernel: "se", "none", or convolutions, see
            `extra_convolutions`.
        branch_set: Branches of the large kernel, see `branch_table`.
        device: Where to put the parameters.
        dtype: Their type.

    Raises:
        InputError: If K is even, unless it is 0, or there is no such structure or set.
    """

    gamma: nn.Parameter | None
    squeeze_excite: SqueezeExcite | None
    extra: nn.Sequential | None

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        ffn_ratio: float = 4.0,
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
        *,
        extra_structure: ExtraStructure = "se",
        branch_set: BranchSet = "dilated",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check(
            kernel_size == 0 or (kernel_size > 0 and kernel_size % 2 == 1),
            "an odd kernel size, or 0 for a block without a depthwise convolution",
            f"{kernel_size}",
            f"use {max(kernel_size, 1) | 1}",
        )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = int(channels * ffn_ratio)
        self.large_kernel = _large_kernel(channels, kernel_size, branch_set, factory)
        self.norm: nn.Module = nn.BatchNorm2d(channels, **factory) if kernel_size else nn.Identity()
        has_squeeze = extra_structure == "se"
        self.squeeze_excite = SqueezeExcite(channels, max(channels // 4, 1), **factory) if has_squeeze else None
        self.extra = extra_convolutions(extra_structure, channels, **factory)
        self.fc1 = nn.Linear(channels, hidden, **factory)
        self.activation = nn.GELU()
        self.response_norm = GlobalResponseNorm(hidden, **factory)
        self.fc2 = nn.Linear(hidden, channels, bias=False, **factory)
        self.final_norm: nn.Module = nn.BatchNorm2d(channels, **factory)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale, **factory))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @property
    def is_merged(self) -> bool:
        """Whether branches, norms, layer scale and the shift of the response norm have been folded."""
        return isinstance(self.final_norm, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.norm(self.large_kernel(x))
        for structure in (self.squeeze_excite, self.extra):
            y = y if structure is None else structure(y)
        y = self.response_norm(self.activation(self.fc1(y.permute(0, 2, 3, 1))))
        y = self.final_norm(self.fc2(y).permute(0, 3, 1, 2))
        if self.gamma is not None:
            y = y * self.gamma[:, None, None]
        return x + self.drop_path(y)

    def reparameterize(self) -> None:
        """Fold branches and norms into the convolution and the last linear layer, in place.

        The layer scale goes into the last linear layer too, and so does the shift of the response norm before it.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        kernel = self.large_kernel
        if isinstance(kernel, DilatedReparamConv2d):
            kernel.reparameterize()
        if not isinstance(self.norm, nn.Identity):
            conv = kernel.large.conv if isinstance(kernel, DilatedReparamConv2d) else kernel
            assert isinstance(conv, nn.Conv2d)
            fold_after(conv, self.norm)
            self.norm = nn.Identity().eval()
        for part in () if self.extra is None else self.extra:
            assert isinstance(part, ConvNorm2d)
            part.reparameterize()
        if not self.is_merged:
            weight, bias = folded_after(self.fc2, self.final_norm)
            if self.gamma is not None:
                scale = as_double(self.gamma)
                weight, bias = fold_affine_after(weight, bias, scale, torch.zeros_like(scale))
            if self.response_norm.beta is not None:
                shift = as_double(self.response_norm.beta).flatten()
                weight, bias = fold_affine_before(weight, bias, torch.ones_like(shift), shift)
            set_parameters(self.fc2, weight, bias)
            self.final_norm = nn.Identity().eval()
            self.gamma = self.response_norm.beta = None


class UniRepLKNet(ConvNeXtBackbone):
    """UniRepLKNet with any widths, depths and kernel sizes.

    Args:
        channels: C of each stage.
        depths: Blocks in each stage.
        kernel_sizes: K of each stage, or of each block of a stage; see `UniRepLKNetBlock`.
        extra_structure: What stands behind each block's depthwise convolution and its norm: "se" (as published),
            "none", "bottleneck", "pointwise" or "depthwise", see `extra_convolutions`.
        branch_set: Branches of the large kernels: "dilated" (as published), "none", "same_size" or
            "same_equivalent_size", see `branch_table`.
        ffn_ratio: Width inside the blocks' linear layers over C.
        layer_scale: First value of the layer scale; none for blocks without it.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path probability of the last block; it grows linearly from 0 at the first.
        head_init_scale: Factor on the classifier's first weights.
        feature_norms: Whether each stage's output has a LayerNorm of its own where it is a feature for a segmentation
            or detection head, as published downstream backbones have.
        device: Where to put the parameters ("meta" makes none).
        dtype: Their type.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes); stages at H / 4, H / 8, H / 16, H / 32.

    Raises:
        InputError: If the lists differ in length, a kernel size is even or no whole number, or there is no such
            structure or set.
    """

    def __init__(
        self,
        channels: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 27, 3),
        kernel_sizes: Sequence[int | Sequence[int]] = (3, 13, (13, 3, 3) * 9, 13),
        extra_structure: ExtraStructure = "se",
        branch_set: BranchSet = "dilated",
        ffn_ratio: float = 4.0,
        layer_scale: float | None = 1e-6,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_init_scale: float = 1.0,
        feature_norms: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_stages(channels, depths, kernel_sizes)
        check_name(branch_set, BRANCH_SETS, "branch set")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        rates = drop_path_rates(drop_path_rate, depths)
        studied: dict[str, Any] = {"extra_structure": extra_structure, "branch_set": branch_set}
        stages = [
            [
                UniRepLKNetBlock(width, size, ffn_ratio, layer_scale, rate, **studied, **factory)
                for size, rate in zip(_of_blocks(kernel_sizes[index], depths[index]), rates[index], strict=True)
            ]
            for index, width in enumerate(channels)
        ]
        super().__init__(
            stages=stages,
            stem=nn.Sequential(
                *_halving(in_chans, channels[0] // 2, factory),
                nn.GELU(),
                *_halving(channels[0] // 2, channels[0], factory),
            ),
            downsample=_halving,
            channels=channels,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_init_scale=head_init_scale,
            feature_norms=feature_norms,
            **factory,
        )


def _large_kernel(channels: int, kernel_size: int, branch_set: BranchSet, factory: dict[str, Any]) -> nn.Module:
    if kernel_size == 0:
        return nn.Identity()
    if kernel_size < SMALLEST_WITH_BRANCHES:
        return DepthwiseConv2d(channels, kernel_size, bias=False, **factory)
    return DilatedReparamConv2d(channels, kernel_size, branch_set=branch_set, **factory)


def _of_blocks(sizes: int | Sequence[int], depth: int) -> Sequence[int]:
    if isinstance(sizes, int):
        return [sizes] * depth
    check(
        isinstance(sizes, list | tuple) and all(type(size) is int for size in sizes),
        "a whole number for each kernel size of a stage",
        repr(sizes),
        "write for instance 13, or (13, 3, 3) for three blocks",
    )
    check(
        len(sizes) == depth,
        f"one kernel size, or {depth} of them, for a stage of {depth} blocks",
        f"{len(sizes)}",
        "give one for each block of the stage",
    )
    return sizes


def _halving(in_channels: int, out_channels: int, factory: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, **factory),
        LayerNorm2d(out_channels, eps=EPS, **factory),
    )


@dataclass(frozen=True)
class _Variant:
    channels: tuple[int, ...]
    depths: tuple[int, ...] = (3, 3, 27, 3)
    kernel_sizes: tuple[int | tuple[int, ...], ...] = (3, 13, (13, 3, 3) * 9, 13)


def _widths(first: int) -> tuple[int, ...]:
    return tuple(first * 2**stage for stage in range(4))


_ALL_LARGE = (3, 13, 13, 13)

VARIANTS = {
    "unireplknet_a": _Variant(_widths(40), depths=(2, 2, 6, 2), kernel_sizes=_ALL_LARGE),
    "unireplknet_f": _Variant(_widths(48), depths=(2, 2, 6, 2), kernel_sizes=_ALL_LARGE),
    "unireplknet_p": _Variant(_widths(64), depths=(2, 2, 6, 2), kernel_sizes=_ALL_LARGE),
    "unireplknet_n": _Variant(_widths(80), depths=(2, 2, 8, 2), kernel_sizes=_ALL_LARGE),
    "unireplknet_t": _Variant(_widths(80), depths=(3, 3, 18, 3), kernel_sizes=(3, 13, (13, 3) * 9, 13)),
    "unireplknet_s": _Variant(_widths(96)),
    "unireplknet_b": _Variant(_widths(128)),
    "unireplknet_l": _Variant(_widths(192)),
    "unireplknet_xl": _Variant(_widths(256)),
}


default_cfgs = generate_default_cfgs(configurations(VARIANTS, "stem.0"))


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> UniRepLKNet:
    return build(UniRepLKNet, VARIANTS, name, pretrained, settings)


@register_model
def unireplknet_a(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-A: 4.4M parameters merged, 0.64 GMACs at 224 pixels, 77.0 % on ImageNet-1K."""
    return _create("unireplknet_a", pretrained, kwargs)


@register_model
def unireplknet_f(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-F: 6.2M parameters merged, 0.91 GMACs at 224 pixels, 78.6 % on ImageNet-1K."""
    return _create("unireplknet_f", pretrained, kwargs)


@register_model
def unireplknet_p(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-P: 10.7M parameters merged, 1.57 GMACs at 224 pixels, 80.2 % on ImageNet-1K."""
    return _create("unireplknet_p", pretrained, kwargs)


@register_model
def unireplknet_n(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-N: 18.3M parameters merged, 2.77 GMACs at 224 pixels, 81.6 % on ImageNet-1K."""
    return _create("unireplknet_n", pretrained, kwargs)


@register_model
def unireplknet_t(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-T: 31.0M parameters merged, 4.90 GMACs at 224 pixels, 83.2 % on ImageNet-1K."""
    return _create("unireplknet_t", pretrained, kwargs)


@register_model
def unireplknet_s(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-S: 55.6M parameters merged, 9.09 GMACs at 224 pixels, 83.9 % on ImageNet-1K."""
    return _create("unireplknet_s", pretrained, kwargs)


@register_model
def unireplknet_b(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-B: 98.0M parameters merged, 47.2 GMACs at 384 pixels, 87.4 % after ImageNet-22K."""
    return _create("unireplknet_b", pretrained, kwargs)


@register_model
def unireplknet_l(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-L: 218.5M parameters merged, 105.4 GMACs at 384 pixels, 87.9 % after ImageNet-22K."""
    return _create("unireplknet_l", pretrained, kwargs)


@register_model
def unireplknet_xl(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-XL: 386.5M parameters merged, 186.8 GMACs at 384 pixels, 88.0 % after ImageNet-22K."""
    return _create("unireplknet_xl", pretrained, kwargs)
