"""RepLKNet: "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs" (Ding et al., CVPR 2022).

The variants 3B to XL are the published networks (section 4.1, Table 5); nano, tiny and small are ours, since nothing
below 79M parameters was published. Differences from the published code: every depthwise convolution runs on
`widefield.ops`, the norm after the last stage follows timm's ``forward_features``, and SyncBatchNorm is the trainer's
choice. Published state dicts are read and written through `widefield.checkpoints`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import DropPath
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from widefield.models._backbone import HierarchicalBackbone, Stage, check_stages, drop_path_rates
from widefield.models._entry_points import build, configurations
from widefield.nn import ConvNorm2d, ReparamConv2d
from widefield.reparam import check_evaluation_mode, fold_before

__all__ = ["RepLKNet"]


class RepLKBlock(nn.Module):
    """``x + pointwise(ReLU(large kernel(pointwise(BN(x)))))``, the spatial half of a pair.

    Args:
        channels: C.
        hidden_channels: Width of the large-kernel convolution.
        kernel_size: K.
        small_kernel_size: k of the parallel kernel, or none.
        drop_path: Probability of dropping the residual branch of a sample.
        device: Where to put the parameters.
        dtype: Their type.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        kernel_size: int,
        small_kernel_size: int | None,
        drop_path: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        self.conv1 = ConvNorm2d(channels, hidden_channels, activation=nn.ReLU, device=device, dtype=dtype)
        self.large_kernel = ReparamConv2d(hidden_channels, kernel_size, small_kernel_size, device=device, dtype=dtype)
        self.activation = nn.ReLU()
        self.conv2 = ConvNorm2d(hidden_channels, channels, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @property
    def is_merged(self) -> bool:
        """Whether branches and norms have been folded."""
        return isinstance(self.norm, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        y = self.activation(self.large_kernel(self.conv1(self.norm(x))))
        return x + self.drop_path(self.conv2(y))

    def reparameterize(self) -> None:
        """Fold branches and norms, in place: 1x1 convolutions do not pad, so the norm before them folds too.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        for part in (self.conv1, self.large_kernel, self.conv2):
            part.reparameterize()
        if not self.is_merged:
            fold_before(self.norm, self.conv1.conv)
            self.norm = nn.Identity().eval()


class ConvFFN(nn.Module):
    """``x + pointwise(GELU(pointwise(BN(x))))``, the channel half of a pair.

    Args:
        channels: C.
        hidden_channels: Width between the two 1x1 convolutions.
        drop_path: Probability of dropping the residual branch of a sample.
        device: Where to put the parameters.
        dtype: Their type.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        drop_path: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        self.conv1 = ConvNorm2d(channels, hidden_channels, activation=nn.GELU, device=device, dtype=dtype)
        self.conv2 = ConvNorm2d(hidden_channels, channels, device=device, dtype=dtype)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @property
    def is_merged(self) -> bool:
        """Whether the norms have been folded."""
        return isinstance(self.norm, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x + self.drop_path(self.conv2(self.conv1(self.norm(x))))

    def reparameterize(self) -> None:
        """Fold the norms, in place.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        for part in (self.conv1, self.conv2):
            part.reparameterize()
        if not self.is_merged:
            fold_before(self.norm, self.conv1.conv)
            self.norm = nn.Identity().eval()


class RepLKNet(HierarchicalBackbone):
    """RepLKNet with any widths, depths and kernel sizes.

    Args:
        channels: C of each stage.
        depths: Pairs of `RepLKBlock` and `ConvFFN` in each stage.
        kernel_sizes: K of each stage; odd.
        small_kernel_size: k of the parallel kernels, or none. A stage whose K is not larger has none either.
        hidden_ratio: Width of the large-kernel convolutions over C ("dw_ratio" in the published code).
        ffn_ratio: Width inside `ConvFFN` over C.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path probability of the last pair; it grows linearly from 0 at the first.
        zero_init_residual: Whether the last norm of every residual branch starts with weight 0, so that each block
            starts as the identity (Goyal et al., 2017, section 5.1). The published networks start with weight 1.
        feature_norms: Whether each stage's output has a BatchNorm of its own where it is a feature for a segmentation
            or detection head, as in the published XL configurations ("norm_intermediate_features").
        device: Where to put the parameters ("meta" makes none).
        dtype: Their type.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes); stages at H / 4, H / 8, H / 16, H / 32.

    Raises:
        InputError: If the lists differ in length, or as `ReparamConv2d`.
    """

    def __init__(
        self,
        channels: Sequence[int] = (128, 256, 512, 1024),
        depths: Sequence[int] = (2, 2, 18, 2),
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        small_kernel_size: int | None = 5,
        hidden_ratio: float = 1.0,
        ffn_ratio: float = 4.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_residual: bool = False,
        feature_norms: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        check_stages(channels, depths, kernel_sizes)
        rates = drop_path_rates(drop_path_rate, depths)
        stages: list[Stage] = []
        for index, (width, kernel_size) in enumerate(zip(channels, kernel_sizes, strict=True)):
            small = small_kernel_size if small_kernel_size is not None and small_kernel_size < kernel_size else None
            blocks: list[nn.Module] = []
            for rate in rates[index]:
                hidden = int(width * hidden_ratio)
                blocks.append(RepLKBlock(width, hidden, kernel_size, small, rate, **factory))
                blocks.append(ConvFFN(width, int(width * ffn_ratio), rate, **factory))
            downsample = _transition(channels[index - 1], width, factory) if index else nn.Identity()
            stages.append(Stage(downsample, blocks))
        super().__init__(
            stem=_stem(in_chans, channels[0], factory),
            stages=stages,
            norm=nn.BatchNorm2d(channels[-1], **factory),
            feature_norms=[nn.BatchNorm2d(width, **factory) for width in channels] if feature_norms else None,
            channels=channels,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **factory,
        )
        if zero_init_residual:
            for block in self.modules():
                if isinstance(block, RepLKBlock | ConvFFN):
                    nn.init.zeros_(cast("nn.BatchNorm2d", block.conv2.norm).weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layer groups for layer-wise learning-rate decay.

        The published groups: stem 0; the first two stages, each with the transition after it, 1 and 2; every two pairs
        of the third stage 3, 4, ...; the last transition with the last of these; the last stage next; norm and head
        last. With `coarse`, one group for each stage.
        """
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        # A pruned backbone may have no third stage.
        pairs = sum(-(-len(cast("Stage", stage).blocks) // 4) for stage in self.stages[2:3])
        chunks = [
            (rf"^stages\.2\.blocks\.(?:{'|'.join(str(4 * chunk + entry) for entry in range(4))})\.", (3 + chunk,))
            for chunk in range(pairs)
        ]
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.0\.", (1,)),
                (r"^stages\.1\.downsample\.", (1,)),
                (r"^stages\.1\.", (2,)),
                (r"^stages\.2\.downsample\.", (2,)),
                *chunks,
                (r"^stages\.3\.downsample\.", (2 + pairs,)),
                (r"^stages\.3\.", (3 + pairs,)),
            ],
        }


def _stem(in_chans: int, width: int, factory: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm2d(in_chans, width, 3, stride=2, activation=nn.ReLU, **factory),
        ConvNorm2d(width, width, 3, depthwise=True, activation=nn.ReLU, **factory),
        ConvNorm2d(width, width, 1, activation=nn.ReLU, **factory),
        ConvNorm2d(width, width, 3, stride=2, depthwise=True, activation=nn.ReLU, **factory),
    )


def _transition(in_channels: int, out_channels: int, factory: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm2d(in_channels, out_channels, 1, activation=nn.ReLU, **factory),
        ConvNorm2d(out_channels, out_channels, 3, stride=2, depthwise=True, activation=nn.ReLU, **factory),
    )


@dataclass(frozen=True)
class _Variant:
    channels: tuple[int, ...]
    depths: tuple[int, ...] = (2, 2, 18, 2)
    kernel_sizes: tuple[int, ...] = (31, 29, 27, 13)
    small_kernel_size: int | None = 5
    hidden_ratio: float = 1.0
    zero_init_residual: bool = False


_BASE, _LARGE, _HUGE = (tuple(width * 2**stage for stage in range(4)) for width in (128, 192, 256))

VARIANTS = {
    "replknet_nano": _Variant(
        (32, 64, 128, 256), depths=(1, 1, 3, 1), kernel_sizes=(13, 13, 13, 13), zero_init_residual=True
    ),
    "replknet_tiny": _Variant((64, 128, 256, 512), depths=(2, 2, 10, 2), zero_init_residual=True),
    "replknet_small": _Variant((96, 192, 384, 768), depths=(2, 2, 14, 2), zero_init_residual=True),
    "replknet_3b": _Variant(_BASE, kernel_sizes=(3, 3, 3, 3), small_kernel_size=None),
    "replknet_7b": _Variant(_BASE, kernel_sizes=(7, 7, 7, 7)),
    "replknet_13b": _Variant(_BASE, kernel_sizes=(13, 13, 13, 13)),
    "replknet_25b": _Variant(_BASE, kernel_sizes=(25, 25, 25, 13)),
    "replknet_31b": _Variant(_BASE),
    "replknet_31l": _Variant(_LARGE),
    "replknet_xl": _Variant(_HUGE, kernel_sizes=(27, 27, 27, 13), small_kernel_size=None, hidden_ratio=1.5),
}


default_cfgs = generate_default_cfgs(configurations(VARIANTS, "stem.0.conv"))


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> RepLKNet:
    return build(RepLKNet, VARIANTS, name, pretrained, settings)


@register_model
def replknet_nano(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-nano, ours: 1.7M parameters, K = 13 in every stage."""
    return _create("replknet_nano", pretrained, kwargs)


@register_model
def replknet_tiny(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-tiny, ours: 15M parameters, K = 31, 29, 27, 13."""
    return _create("replknet_tiny", pretrained, kwargs)


@register_model
def replknet_small(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-small, ours: 40M parameters, K = 31, 29, 27, 13."""
    return _create("replknet_small", pretrained, kwargs)


@register_model
def replknet_3b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-3: the published small-kernel control, K = 3."""
    return _create("replknet_3b", pretrained, kwargs)


@register_model
def replknet_7b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-7: K = 7."""
    return _create("replknet_7b", pretrained, kwargs)


@register_model
def replknet_13b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-13: K = 13."""
    return _create("replknet_13b", pretrained, kwargs)


@register_model
def replknet_25b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-25: K = 25, 25, 25, 13."""
    return _create("replknet_25b", pretrained, kwargs)


@register_model
def replknet_31b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-31B: K = 31, 29, 27, 13 (Table 6: 79M parameters, 15.3 GMACs, 83.5 % on ImageNet-1K)."""
    return _create("replknet_31b", pretrained, kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-31L: 1.5 times as wide."""
    return _create("replknet_31l", pretrained, kwargs)


@register_model
def replknet_xl(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-XL: twice as wide, K = 27, 27, 27, 13, no parallel small kernel, 1.5 times wider large-kernel layers."""
    return _create("replknet_xl", pretrained, kwargs)
