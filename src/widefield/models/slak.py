"""SLaK: "More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity" (Liu et al., ICLR 2023).

The variants t, s and b are the published networks, 1.3 times as wide as ConvNeXt (section 4); l is in the published
code alone, without figures or weights; a is ours. Differences from the published code: every depthwise convolution runs
on `widefield.ops`, decomposed kernels can be merged too, SyncBatchNorm is the trainer's choice, and the networks are
dense: sparsity is a matter of training. Published state dicts are read and written through `widefield.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn

from widefield._core.checks import check, check_name
from widefield.models._convnext import ConvNeXtBackbone, convnext_stages
from widefield.models._entry_points import build, configurations
from widefield.nn.decomposed_conv import MERGED_FORMS, DecomposedConv2d, MergedForm
from widefield.nn.reparam_conv import ReparamConv2d

__all__ = ["SLaK"]


class SLaK(ConvNeXtBackbone):
    """SLaK with any widths, depths and kernel sizes.

    Args:
        channels: C of each stage.
        depths: Blocks in each stage.
        kernel_sizes: M of each stage; odd.
        small_kernel_size: N, the width of the stripes and the size of the parallel small kernel; odd. Without the
            decomposition it may be none. A stage whose M is not larger has no small kernel.
        decomposed: Whether a kernel is two stripes, M x N and N x M, instead of M x M.
        branch_norm: Whether each branch ends in a BatchNorm, which the paper calls crucial (``bn`` in the published
            code).
        merged_form: What merging makes of two stripes, "stripes" or "cross"; see `DecomposedConv2d`.
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
        InputError: If the lists differ in length, a size is even, stripes have no width, or there is no such form.
    """

    def __init__(
        self,
        channels: Sequence[int] = (124, 249, 499, 998),
        depths: Sequence[int] = (3, 3, 9, 3),
        kernel_sizes: Sequence[int] = (51, 49, 47, 13),
        small_kernel_size: int | None = 5,
        decomposed: bool = True,
        branch_norm: bool = True,
        merged_form: MergedForm = "stripes",
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
        check_name(merged_form, MERGED_FORMS, "merged form")
        factory: dict[str, Any] = {"device": device, "dtype": dtype}

        def large_kernel(width: int, size: int) -> nn.Module:
            small = small_kernel_size
            options: dict[str, Any] = {"norm": branch_norm, **factory}
            if not decomposed:
                return ReparamConv2d(width, size, small if small is not None and small < size else None, **options)
            return DecomposedConv2d(width, size, _stripe_width(small), merged_form=merged_form, **options)

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
        self._merged_form: MergedForm = merged_form

    @property
    def merged_form(self) -> MergedForm:
        """What merging makes of two stripes; set it to choose for every layer that is still branched."""
        return self._merged_form

    @merged_form.setter
    def merged_form(self, form: MergedForm) -> None:
        check_name(form, MERGED_FORMS, "merged form")
        self._merged_form = form
        for layer in self.modules():
            if isinstance(layer, DecomposedConv2d):
                layer.merged_form = form


def _stripe_width(small_kernel_size: int | None) -> int:
    check(
        small_kernel_size is not None,
        "a width for the stripes of a decomposed kernel",
        "small_kernel_size=None",
        "give one, for instance 5, or use decomposed=False",
    )
    assert small_kernel_size is not None
    return small_kernel_size


@dataclass(frozen=True)
class _Variant:
    channels: tuple[int, ...]
    depths: tuple[int, ...] = (3, 3, 27, 3)


_TINY, _BASE, _LARGE = (tuple(int(1.3 * width * 2**stage) for stage in range(4)) for width in (96, 128, 192))

VARIANTS = {
    "slak_a": _Variant((40, 80, 160, 320), depths=(2, 2, 6, 2)),
    "slak_t": _Variant(_TINY, depths=(3, 3, 9, 3)),
    "slak_s": _Variant(_TINY),
    "slak_b": _Variant(_BASE),
    "slak_l": _Variant(_LARGE),
}


default_cfgs = generate_default_cfgs(configurations(VARIANTS, "stem.0"))


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> SLaK:
    return build(SLaK, VARIANTS, name, pretrained, settings)


@register_model
def slak_a(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """SLaK-A, ours: 4.3M parameters, M = 51, 49, 47, 13."""
    return _create("slak_a", pretrained, kwargs)


@register_model
def slak_t(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """SLaK-T: 51M parameters and 8.7 GMACs when dense (82.5 % on ImageNet-1K at a sparsity of 40 %)."""
    return _create("slak_t", pretrained, kwargs)


@register_model
def slak_s(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """SLaK-S: 91M parameters and 16.6 GMACs when dense (83.8 % on ImageNet-1K at a sparsity of 40 %)."""
    return _create("slak_s", pretrained, kwargs)


@register_model
def slak_b(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """SLaK-B: 158M parameters and 28.5 GMACs when dense (84.0 % on ImageNet-1K at a sparsity of 40 %)."""
    return _create("slak_b", pretrained, kwargs)


@register_model
def slak_l(pretrained: bool = False, **kwargs: Any) -> SLaK:
    """SLaK-L: 347M parameters and 61.9 GMACs when dense (of the published code alone, without a score)."""
    return _create("slak_l", pretrained, kwargs)
