"""timm's model interface, written once for every family: stem, stages, norm, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn


class Stage(nn.Module):
    """A downsampling layer and a sequence of blocks at one resolution.

    Args:
        downsample: Brings the previous stage's (N, C, H, W) to this stage's width and resolution.
        blocks: What runs at that resolution, in order.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H', W')."""
        x = self.downsample(x)
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return cast("Tensor", checkpoint_seq(self.blocks, x))
        return cast("Tensor", self.blocks(x))


class HierarchicalBackbone(nn.Module):
    """Four stages at strides 4, 8, 16 and 32 with timm's whole interface; families fill in the modules.

    Args:
        stem: (N, C_in, H, W) -> (N, channels[0], H / 4, W / 4).
        stages: One for each entry of `channels`.
        norm: Applied to the last stage's output.
        channels: Width of each stage.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: timm's pooling type, "" for none.
        drop_rate: Dropout before the classifier.
        device: Where to put the classifier.
        dtype: Its type.
    """

    pretrained_cfg: Mapping[str, Any]

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[Stage],
        norm: nn.Module,
        channels: Sequence[int],
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = channels[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"}
            for index, width in enumerate(channels)
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.head = ClassifierHead(
            channels[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, device=device, dtype=dtype
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> the normalised output of the last stage, (N, C, H / 32, W / 32)."""
        return cast("Tensor", self.norm(self.stages(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what `forward_features` returned; with `pre_logits`, pool only."""
        return cast("Tensor", self.head(x, pre_logits=pre_logits))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the outputs of stages, and the final features.

        Args:
            x: Images (N, C_in, H, W).
            indices: Stages to return: the last n, those listed, or all.
            norm: Whether the last stage's output is normalised.
            stop_early: Whether to stop after the last stage asked for.
            output_fmt: "NCHW".
            intermediates_only: Whether to leave out the final features.

        Returns:
            The stages' outputs, or (final features, the stages' outputs).
        """
        assert output_fmt == "NCHW", f"Expected the output format NCHW, but got {output_fmt}: these are feature maps."
        wanted, last_wanted = feature_take_indices(len(self.stages), indices)
        last = len(self.stages) - 1
        intermediates: list[Tensor] = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages[: last_wanted + 1] if stop_early else self.stages):
            x = stage(x)
            if index in wanted:
                intermediates.append(self.norm(x) if norm and index == last else x)
        if intermediates_only:
            return intermediates
        reached_end = not stop_early or last_wanted == last
        return self.norm(x) if reached_end else x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and with them norm and head.

        Args:
            indices: Stages to keep: the last n, or those listed.
            prune_norm: Whether the norm goes even if the last stage stays.
            prune_head: Whether the head goes even if the last stage stays.

        Returns:
            The stages asked for, as indices from 0.
        """
        wanted, last_wanted = feature_take_indices(len(self.stages), indices)
        is_cut = last_wanted < len(self.stages) - 1
        if prune_norm or is_cut:
            self.norm = nn.Identity()
        self.stages = self.stages[: last_wanted + 1]
        if is_cut:
            self.num_features = self.head_hidden_size = cast("int", self.feature_info[last_wanted]["num_chs"])
        if prune_head or is_cut:
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """Return the final linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one with `num_classes` outputs (0: none) and, if given, change the pooling."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass of training instead of keeping its activations."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beyond the one-dimensional ones."""
        return set()
