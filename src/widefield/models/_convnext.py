"""What the families built on ConvNeXt share (Liu et al., "A ConvNet for the 2020s", CVPR 2022, section 2).

SLaK, PeLK and ConvNeXt with large kernels differ in the depthwise convolution of the block alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from widefield.models._backbone import HierarchicalBackbone, Stage, check_stages, drop_path_rates
from widefield.reparam import check_evaluation_mode, fold_scale_after

EPS = 1e-6
"""Of every LayerNorm."""

_LAST_STAGE = 12
"""Layer of the last stage in the published groups, which are made for 27 blocks in the third."""


class ConvNeXtBlock(nn.Module):
    """``x + gamma * fc2(GELU(fc1(LayerNorm(large_kernel(x)))))``.

    Args:
        channels: C.
        large_kernel: The spatial convolution, (N, C, H, W) -> (N, C, H, W).
        ffn_ratio: Width between the two linear layers over C.
        layer_scale: First value of gamma; none for a block without it.
        drop_path: Probability of dropping the residual branch of a sample.
        device: Where to put the parameters.
        dtype: Their type.
    """

    gamma: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        large_kernel: nn.Module,
        ffn_ratio: float = 4.0,
        layer_scale: float | None = 1e-6,
        drop_path: float = 0.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        hidden = int(channels * ffn_ratio)
        self.large_kernel = large_kernel
        self.norm = nn.LayerNorm(channels, eps=EPS, **factory)
        self.fc1 = nn.Linear(channels, hidden, **factory)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels, **factory)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((channels,), layer_scale, **factory))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    @property
    def is_merged(self) -> bool:
        """Whether the large kernel's branches and the layer scale have been folded."""
        return self.gamma is None and getattr(self.large_kernel, "is_merged", True) is True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.mix(x, self.large_kernel(x))

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the block's output for its input `x` and what the spatial convolution made of it, `y`."""
        y = self.norm(y.permute(0, 2, 3, 1))
        y = self.fc2(self.activation(self.fc1(y)))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))

    def reparameterize(self) -> None:
        """Fold the large kernel's branches, and the layer scale into the last linear layer, in place.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        fold_part = getattr(self.large_kernel, "reparameterize", None)
        if callable(fold_part):
            fold_part()
        if self.gamma is not None:
            fold_scale_after(self.fc2, self.gamma)
            self.gamma = None


class ConvNeXtBackbone(HierarchicalBackbone):
    """Patch stem, four stages of any blocks with patch merging between them, pooling, LayerNorm, classifier.

    Args:
        stages: The blocks of each stage.
        stage_type: Class of each stage, called as `Stage` is.
        stem: In place of ConvNeXt's, a 4 x 4 convolution with stride 4 and a LayerNorm.
        downsample: Makes the layer between two widths in place of ConvNeXt's, a LayerNorm and a 2 x 2 convolution with
            stride 2; called with both widths and the keywords of every layer.
        channels: C of each stage.
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: timm's pooling type.
        drop_rate: Dropout before the classifier.
        head_init_scale: Factor on the classifier's first weights.
        feature_norms: Whether each stage's output has a LayerNorm of its own where it is a feature for a segmentation
            or detection head, as published downstream backbones have.
        device: Where to put the parameters ("meta" makes none).
        dtype: Their type.
    """

    def __init__(
        self,
        *,
        stages: Sequence[Sequence[nn.Module]],
        stage_type: type[Stage] = Stage,
        stem: nn.Module | None = None,
        downsample: Callable[[int, int, dict[str, Any]], nn.Module] | None = None,
        channels: Sequence[int],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        head_init_scale: float,
        feature_norms: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        halve = _patch_merging if downsample is None else downsample
        super().__init__(
            stem=_patches(in_chans, channels[0], factory) if stem is None else stem,
            stages=[
                stage_type(halve(channels[i - 1], channels[i], factory) if i else nn.Identity(), blocks)
                for i, blocks in enumerate(stages)
            ],
            norm=LayerNorm2d(channels[-1], eps=EPS, **factory),
            norm_after_pool=True,
            feature_norms=[LayerNorm2d(width, eps=EPS, **factory) for width in channels] if feature_norms else None,
            channels=channels,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **factory,
        )
        initialise(self, head_init_scale)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return ConvNeXt's layer groups for layer-wise learning-rate decay; see `convnext_groups`."""
        return convnext_groups(self.stages, coarse=coarse)

    def layer_decay_ids(self) -> dict[str, int]:
        """Return the published layer of each parameter: from 0 for the stem to 13 for norm and head.

        They are the groups of `group_matcher`, but the last stage is in 12 however few blocks the third one has.
        """
        from timm.models import group_parameters

        layers = cast("dict[str, int]", group_parameters(self, self.group_matcher(), reverse=True))
        below = 3 + _triples(self.stages)
        gap = max(0, _LAST_STAGE - below)
        return {name: layer if layer < below else layer + gap for name, layer in layers.items()}


def convnext_stages(
    channels: Sequence[int],
    depths: Sequence[int],
    kernel_sizes: Sequence[int],
    large_kernel: Callable[[int, int], nn.Module],
    *,
    ffn_ratio: float,
    layer_scale: float | None,
    drop_path_rate: float,
    factory: dict[str, Any],
) -> list[list[ConvNeXtBlock]]:
    """Return the blocks of each stage, all of one kernel size within it.

    Args:
        channels: C of each stage.
        depths: Blocks in each stage.
        kernel_sizes: K of each stage.
        large_kernel: Makes the spatial convolution of a block for C and K.
        ffn_ratio: Width inside the blocks' linear layers over C.
        layer_scale: First value of the layer scale; none for blocks without it.
        drop_path_rate: Drop-path probability of the last block.
        factory: Device and dtype of every parameter.

    Raises:
        InputError: If the lists differ in length.
    """
    check_stages(channels, depths, kernel_sizes)
    rates = drop_path_rates(drop_path_rate, depths)
    return [
        [
            ConvNeXtBlock(width, large_kernel(width, size), ffn_ratio, layer_scale, rate, **factory)
            for rate in rates[stage]
        ]
        for stage, (width, size) in enumerate(zip(channels, kernel_sizes, strict=True))
    ]


def initialise(model: HierarchicalBackbone, head_init_scale: float) -> None:
    """Draw the weights of every convolution and linear layer from N(0, 0.02^2), cut off at 2; biases are 0."""
    for module in model.modules():
        # Drawing nothing takes as long as drawing.
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if isinstance(model.head.fc, nn.Linear):
        with torch.no_grad():
            model.head.fc.weight.mul_(head_init_scale)
            model.head.fc.bias.mul_(head_init_scale)


def convnext_groups(stages: nn.Sequential, *, coarse: bool) -> dict[str, Any]:
    """Return the layer groups for layer-wise learning-rate decay that ConvNeXt and UniRepLKNet publish.

    Stem 0; the first two stages 1 and 2; the two downsamplings after them 2 and 3; every three blocks of the third
    stage 3, 4, ...; the last downsampling and the last stage next; norm and head last.

    Args:
        stages: `Stage` for each resolution; a pruned backbone has fewer than four.
        coarse: One group for each stage instead.
    """
    if coarse:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
    triples = _triples(stages)
    chunks = [
        (rf"^stages\.2\.blocks\.(?:{'|'.join(str(3 * chunk + entry) for entry in range(3))})\.", (3 + chunk,))
        for chunk in range(triples)
    ]
    return {
        "stem": r"^stem",
        "blocks": [
            (r"^stages\.0\.", (1,)),
            (r"^stages\.1\.", (2,)),
            (r"^stages\.2\.downsample\.", (3,)),
            *chunks,
            (r"^stages\.3\.", (3 + triples,)),
        ],
    }


def _triples(stages: nn.Sequential) -> int:
    return sum(-(-len(cast("Stage", stage).blocks) // 3) for stage in stages[2:3])


def _patches(in_channels: int, out_channels: int, factory: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 4, stride=4, **factory),
        LayerNorm2d(out_channels, eps=EPS, **factory),
    )


def _patch_merging(in_channels: int, out_channels: int, factory: dict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        LayerNorm2d(in_channels, eps=EPS, **factory),
        nn.Conv2d(in_channels, out_channels, 2, stride=2, **factory),
    )
