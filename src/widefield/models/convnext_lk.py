"""ConvNeXt with the large kernels of RepLKNet: "Scaling Up Your Kernels to 31x31" (Ding et al., CVPR 2022), Table 11.

ConvNeXt ("A ConvNet for the 2020s", Liu et al., CVPR 2022) with its 7 x 7 kernels replaced by 31, 29, 27 and 13 in the
four stages; with 7 everywhere it is ConvNeXt itself. No code or weights of these networks were published. A parallel
small kernel is an option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from widefield._core.checks import check
from widefield.models._convnext import ConvNeXtBackbone, convnext_stages
from widefield.models._entry_points import build, configurations
from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.nn.reparam_conv import ReparamConv2d

__all__ = ["ConvNeXtLK"]


class ConvNeXtLK(ConvNeXtBackbone):
    """ConvNeXt with any widths, depths and kernel sizes.

    Args:
        channels: C of each stage.
        depths: Blocks in each stage.
        kernel_sizes: K of each stage; odd.
        small_kernel_size: k of a parallel small kernel, each of both with a BatchNorm; none for the plain convolution
            with bias of ConvNeXt. With one, a stage whose K is not larger has the BatchNorm alone.
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
        InputError: If the lists differ in length, or a size is even.
    """

    def __init__(
        self,
        channels: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        small_kernel_size: int | None = None,
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
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def large_kernel(width: int, size: int) -> nn.Module:
            check(size % 2 == 1, "an odd kernel size", f"{size}", f"use {size | 1}")
            if small_kernel_size is None:
                return DepthwiseConv2d(width, size, **factory)
            return ReparamConv2d(width, size, small_kernel_size if small_kernel_size < size else None, **factory)

        stages = convnext_stages(
            channels,
            depths,
            kernel_sizes,
            large_kernel,
            ffn_ratio=ffn_ratio,
            layer_scale=layer_scale,
            drop_path_rate=drop_path_rate,
            factory=factory,
        )
        super().__init__(
            stages=stages,
            channels=channels,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_init_scale=head_init_scale,
            feature_norms=feature_norms,
            **factory,
        )


@dataclass(frozen=True)
class _Variant:
    channels: tuple[int, ...]
    depths: tuple[int, ...] = (3, 3, 27, 3)


_TINY, _BASE = (tuple(width * 2**stage for stage in range(4)) for width in (96, 128))

VARIANTS = {
    "convnext_lk_t": _Variant(_TINY, depths=(3, 3, 9, 3)),
    "convnext_lk_s": _Variant(_TINY),
    "convnext_lk_b": _Variant(_BASE),
}


default_cfgs = generate_default_cfgs(configurations(VARIANTS, "stem.0"))


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> ConvNeXtLK:
    return build(ConvNeXtLK, VARIANTS, name, pretrained, settings)


@register_model
def convnext_lk_t(pretrained: bool = False, **kwargs: Any) -> ConvNeXtLK:
    """ConvNeXt-T with K = 31, 29, 27, 13: 32M parameters, 6.1 GMACs."""
    return _create("convnext_lk_t", pretrained, kwargs)


@register_model
def convnext_lk_s(pretrained: bool = False, **kwargs: Any) -> ConvNeXtLK:
    """ConvNeXt-S with K = 31, 29, 27, 13: 58M parameters, 11.3 GMACs."""
    return _create("convnext_lk_s", pretrained, kwargs)


@register_model
def convnext_lk_b(pretrained: bool = False, **kwargs: Any) -> ConvNeXtLK:
    """ConvNeXt-B with K = 31, 29, 27, 13: 99M parameters, 18.8 GMACs."""
    return _create("convnext_lk_b", pretrained, kwargs)
