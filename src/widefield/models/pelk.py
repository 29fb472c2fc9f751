"""PeLK: "PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution" (Chen et al., CVPR 2024).

No code was published. Widths (1.3 times ConvNeXt's), the share of convolved channels and the kernel sizes reproduce the
paper's parameters and FLOPs. What it leaves open is an argument here: the cells of kernels for which no grid is printed
(`SharingGrid.exponential`, or `grids`), the norm of the branches (none, see `PeripheralConv2d`), the small parallel
kernel (5 x 5, as in the paper's section 3) and where the positional embedding counts. The paper's models also have 40 %
of their weights masked; these are dense. `pelk_a` is ours, since nothing below 29M parameters was published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.fx
from timm.models import checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.models._backbone import Stage, drop_path_rates
from widefield.models._convnext import ConvNeXtBackbone, ConvNeXtBlock
from widefield.models._entry_points import build, configurations
from widefield.nn.peripheral_conv import PeripheralConv2d, Position
from widefield.ops import SharingGrid
from widefield.reparam import check_evaluation_mode

__all__ = ["PeLK"]

Grid = SharingGrid | Sequence[int]
"""A whole grid, or the half of one that is symmetric."""

# It looks at strides: a symbolic trace keeps the call as one node.
torch.fx.wrap("first_channels")


def first_channels(x: Tensor, count: int) -> Tensor:
    """Return the first `count` channels of `x` (N, C, H, W), in channels_last memory format if `x` is.

    Such a slice has gaps between its pixels, so that it is in no memory format, and no layer after it would be.
    """
    part = x[:, :count]
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return part
    return part.contiguous(memory_format=torch.channels_last)


class PartialConv2d(nn.Module):
    """Convolve the first channels and keep the others (PeLK, equations 4 to 6).

    Args:
        conv: The convolution of the first ``conv.channels`` channels.

    Shape:
        (N, C, H, W) -> (N, C, H, W), C at least ``conv.channels``.
    """

    def __init__(self, conv: PeripheralConv2d) -> None:
        super().__init__()
        self.conv = conv

    @property
    def is_merged(self) -> bool:
        """Whether the convolution's branches have been folded."""
        return self.conv.is_merged

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Convolve a part; `embedding` as in `PeripheralConv2d`."""
        count = self.conv.channels
        return torch.cat((self.conv(first_channels(x, count), embedding), x[:, count:]), 1)

    def reparameterize(self, embedding: Tensor | None = None) -> None:
        """Fold the convolution's branches and, if it is given, the embedding, in place.

        Raises:
            InputError: As `PeripheralConv2d.reparameterize`.
        """
        self.conv.reparameterize(embedding)


class PeLKBlock(ConvNeXtBlock):
    """`ConvNeXtBlock` whose `large_kernel`, a `PartialConv2d`, takes the embedding of the stage."""

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(N, C, H, W) and h (g, K, K) -> (N, C, H, W)."""
        return self.mix(x, self.large_kernel(x, embedding))

    def reparameterize(self, embedding: Tensor | None = None) -> None:
        """Fold the large kernel's branches, the embedding if it is given, and the layer scale, in place.

        Raises:
            InputError: As `PeripheralConv2d.reparameterize`.
        """
        check_evaluation_mode(self)
        cast("PartialConv2d", self.large_kernel).reparameterize(embedding)
        super().reparameterize()


class PeLKStage(Stage):
    """A stage that owns the positional embedding of its blocks (PeLK, section 4.2).

    Args:
        downsample: Brings the previous stage's (N, C, H, W) to this stage's width and resolution.
        blocks: Each a `PeLKBlock` with kernels of one size.
    """

    embedding: nn.Parameter | None

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__(downsample, blocks)
        self.embedding = None
        conv = cast("PeLKBlock", blocks[0]).large_kernel.conv if blocks else None
        if isinstance(conv, PeripheralConv2d) and conv.position != "none":
            assert conv.weight is not None
            size = (conv.channels, conv.kernel_size, conv.kernel_size)
            self.embedding = nn.Parameter(torch.empty(size, device=conv.weight.device, dtype=conv.weight.dtype))
            nn.init.trunc_normal_(self.embedding, std=0.02)

    @property
    def is_merged(self) -> bool:
        """Whether every block and the embedding have been folded."""
        return self.embedding is None and all(block.is_merged is True for block in self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H', W')."""
        x = self.downsample(x)
        saves = self.grad_checkpointing and self.training and not torch.jit.is_scripting()
        for block in self.blocks:
            x = cast("Tensor", checkpoint(block, x, self.embedding)) if saves else block(x, self.embedding)
        return x

    def reparameterize(self) -> None:
        """Fold every block, and the embedding into each of them, in place.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        for block in self.blocks:
            cast("PeLKBlock", block).reparameterize(self.embedding)
        self.embedding = None


class PeLK(ConvNeXtBackbone):
    """PeLK with any widths, depths and kernel sizes.

    Args:
        channels: C of each stage.
        depths: Blocks in each stage.
        kernel_sizes: K of each stage; odd.
        centre_radius: Taps that share nothing on each side of the central one.
        grids: Cells of the kernels, for each stage or one for all: a `SharingGrid`, or the half that the paper prints,
            the outermost cell first and the central one last, such as (8, 4, 2, 1, 1, 1) for K = 33. Where there is
            none, `SharingGrid.exponential` with `centre_radius`.
        conv_ratio: Share of the channels that is convolved, the first ones.
        small_kernel_size: k of the parallel kernels, or none. A stage whose K is not larger has none either.
        branch_norm: Whether large and small kernel each end in a BatchNorm, as in SLaK.
        position: How the embedding of a stage counts, "kernel" or "border" (see `PeripheralConv2d`), or "none".
        ffn_ratio: Width between the two linear layers of a block over C.
        layer_scale: First value of the residual branches' factors; none for blocks without them.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path probability of the last block; it grows linearly from 0 at the first.
        head_init_scale: Factor on the classifier's first weights.
        feature_norms: Whether each stage's output has a LayerNorm of its own where it is a feature for a segmentation
            or detection head.
        device: Where to put the parameters ("meta" makes none).
        dtype: Their type.

    Shape:
        (N, in_chans, H, W) -> (N, num_classes); stages at H / 4, H / 8, H / 16, H / 32.

    Raises:
        InputError: If the numbers of stages differ, no channel is convolved, or a half grid is not one of whole numbers
            that span the kernel, or as `PeripheralConv2d`.
    """

    def __init__(
        self,
        channels: Sequence[int] = (124, 249, 499, 998),
        depths: Sequence[int] = (3, 3, 9, 3),
        kernel_sizes: Sequence[int] = (51, 49, 47, 13),
        centre_radius: int = 2,
        grids: Grid | Sequence[Grid | None] | None = None,
        conv_ratio: float = 3 / 8,
        small_kernel_size: int | None = 5,
        branch_norm: bool = False,
        position: Position = "kernel",
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
        of_stages = _grids_of_stages(grids, len(channels))
        counts = [len(channels), len(depths), len(kernel_sizes), len(of_stages)]
        check(
            len(set(counts)) == 1,
            "channels, depths, kernel sizes and grids of as many stages",
            ", ".join(map(str, counts)),
            "give one entry for each stage",
        )
        convolved = [int(conv_ratio * width) for width in channels]
        check(
            all(0 < count <= width for count, width in zip(convolved, channels, strict=True)),
            "a share of convolved channels that is at least one channel and at most all",
            f"{conv_ratio:g} of {', '.join(map(str, channels))}",
            "use a conv_ratio between 0 and 1",
        )
        rates = drop_path_rates(drop_path_rate, depths)
        stages: list[list[nn.Module]] = []
        for index, kernel_size in enumerate(kernel_sizes):
            small = small_kernel_size if small_kernel_size is not None and small_kernel_size < kernel_size else None
            grid = _whole_grid(of_stages[index], kernel_size)
            blocks: list[nn.Module] = []
            for rate in rates[index]:
                conv = PeripheralConv2d(
                    convolved[index],
                    kernel_size,
                    grid=grid,
                    centre_radius=centre_radius,
                    small_kernel_size=small,
                    norm=branch_norm,
                    position=position,
                    **factory,
                )
                blocks.append(PeLKBlock(channels[index], PartialConv2d(conv), ffn_ratio, layer_scale, rate, **factory))
            stages.append(blocks)
        super().__init__(
            stages=stages,
            stage_type=PeLKStage,
            channels=channels,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head_init_scale=head_init_scale,
            feature_norms=feature_norms,
            **factory,
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return ConvNeXt's layer groups for layer-wise learning-rate decay.

        The third stage's embedding is in the group of its first blocks, which are the first to use it.
        """
        groups = super().group_matcher(coarse=coarse)
        if not coarse:
            groups["blocks"].append((r"^stages\.2\.embedding", (3,)))
        return groups

    def no_weight_decay(self) -> set[str]:
        """Return the names of the embeddings: what they add is a bias."""
        return {name for name, _ in self.named_parameters() if name.endswith(".embedding")}


def _grids_of_stages(grids: Grid | Sequence[Grid | None] | None, stages: int) -> Sequence[Grid | None]:
    is_one = isinstance(grids, SharingGrid) or (
        isinstance(grids, Sequence) and all(type(cell) is int for cell in grids)
    )
    if grids is None or is_one:
        return [cast("Grid | None", grids)] * stages
    check(
        isinstance(grids, list | tuple),
        "half grids such as [8, 4, 2, 1, 1, 1], one for all stages or one for each",
        repr(grids),
        "give the cells as a list",
    )
    return cast("Sequence[Grid | None]", grids)


def _whole_grid(grid: Grid | None, kernel_size: int) -> SharingGrid | None:
    if grid is None or isinstance(grid, SharingGrid):
        return grid
    cells = list(grid) if isinstance(grid, list | tuple) else []
    is_half = bool(cells) and all(type(cell) is int and cell > 0 for cell in cells)
    taps = 2 * sum(cells) - cells[-1] if is_half else 0
    check(
        taps == kernel_size,
        f"a half grid that spans {kernel_size} taps, the outermost cell first and the central one last",
        f"{cells or grid!r}" + (f", which spans {taps}" if is_half else ""),
        "give whole numbers whose double, the central one counted once, is the kernel size",
    )
    return SharingGrid.from_half(cells)


@dataclass(frozen=True)
class _Variant:
    channels: tuple[int, ...]
    depths: tuple[int, ...] = (3, 3, 27, 3)
    kernel_sizes: tuple[int, ...] = (51, 49, 47, 13)
    centre_radius: int = 2


_TINY, _BASE = (124, 249, 499, 998), (166, 332, 665, 1331)
_LARGER: dict[str, Any] = {"kernel_sizes": (101, 69, 67, 13), "centre_radius": 3}

VARIANTS = {
    "pelk_a": _Variant((40, 80, 160, 320), depths=(2, 2, 6, 2)),
    "pelk_t": _Variant(_TINY, depths=(3, 3, 9, 3)),
    "pelk_t_101": _Variant(_TINY, depths=(3, 3, 9, 3), **_LARGER),
    "pelk_s": _Variant(_TINY),
    "pelk_s_101": _Variant(_TINY, **_LARGER),
    "pelk_b": _Variant(_BASE),
    "pelk_b_101": _Variant(_BASE, **_LARGER),
}

default_cfgs = generate_default_cfgs(configurations(VARIANTS, "stem.0"))


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> PeLK:
    return build(PeLK, VARIANTS, name, pretrained, settings)


@register_model
def pelk_a(pretrained: bool = False, **kwargs: Any) -> PeLK:
    """PeLK-A, ours: 4.0M parameters, K = 51, 49, 47, 13."""
    return _create("pelk_a", pretrained, kwargs)


@register_model
def pelk_t(pretrained: bool = False, **kwargs: Any) -> PeLK:
    """PeLK-T: K = 51, 49, 47, 13 (Table 4: 82.6 % on ImageNet-1K with 29M of its weights unmasked, 5.6 GMACs)."""
    return _create("pelk_t", pretrained, kwargs)


@register_model
def pelk_t_101(pretrained: bool = False, **kwargs: Any) -> PeLK:
    """PeLK-T-101: K = 101, 69, 67, 13 (Table 7)."""
    return _create("pelk_t_101", pretrained, kwargs)


@register_model
def pelk_s(pretrained: bool = False, **kwargs: Any) -> PeLK:
    """PeLK-S: three times as deep in the third stage (Table 4: 83.9 %, 50M unmasked weights, 10.7 GMACs)."""
    return _create("pelk_s", pretrained, kwargs)


@register_model
def pelk_s_101(pretrained: bool = False, **kwargs: Any) -> PeLK:
    """PeLK-S-101: K = 101, 69, 67, 13."""
    return _create("pelk_s_101", pretrained, kwargs)


@register_model
def pelk_b(pretrained: bool = False, **kwargs: Any) -> PeLK:
    """PeLK-B: a third wider (Table 4: 84.2 %, 89M unmasked weights, 18.3 GMACs)."""
    return _create("pelk_b", pretrained, kwargs)


@register_model
def pelk_b_101(pretrained: bool = False, **kwargs: Any) -> PeLK:
    """PeLK-B-101: K = 101, 69, 67, 13 (Table 4: 85.8 % at 384 pixels, 90M unmasked weights, 68.3 GMACs)."""
    return _create("pelk_b_101", pretrained, kwargs)
