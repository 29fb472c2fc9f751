"""timm's model interface, written once for every family: stem, stages, norm, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from widefield._core.checks import check


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


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Return the drop-path probability of every block of every stage: from 0 at the first linearly to `rate`."""
    total = sum(depths)
    rates = [rate * index / max(total - 1, 1) for index in range(total)]
    return [rates[sum(depths[:stage]) : sum(depths[: stage + 1])] for stage in range(len(depths))]


def check_stages(channels: Sequence[object], depths: Sequence[object], kernel_sizes: Sequence[object]) -> None:
    """Raise unless widths, depths and kernel sizes are of as many stages.

    Raises:
        InputError: If they are not.
    """
    check(
        len(channels) == len(depths) == len(kernel_sizes),
        "one width, one depth and one kernel size for each stage",
        f"{len(channels)} widths, {len(depths)} depths and {len(kernel_sizes)} kernel sizes",
        "give as many of each",
    )


class HierarchicalBackbone(nn.Module):
    """Four stages at strides 4, 8, 16 and 32 with timm's whole interface; families fill in the modules.

    Args:
        stem: (N, C_in, H, W) -> (N, channels[0], H / 4, W / 4).
        stages: One for each entry of `channels`.
        norm: Applied to the last stage's output, or to what is pooled of it.
        norm_after_pool: Whether `norm` comes after the pooling, as in ConvNeXt and its kin; `forward_features` then
            returns the last stage's output as it is.
        feature_norms: Applied to the outputs of the stages where these are features for a segmentation or detection
            head; the next stage receives the output without it. None of them if not given.
        channels: Width of each stage.
        head_channels: Width of what `norm` returns, if it differs from the last stage's.
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
        norm_after_pool: bool = False,
        feature_norms: Sequence[nn.Module] | None = None,
        channels: Sequence[int],
        head_channels: int | None = None,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = channels[-1] if head_channels is None else head_channels
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**index, "module": f"stages.{index}"}
            for index, width in enumerate(channels)
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm
        self.norm_after_pool = norm_after_pool
        self.feature_norms = None if feature_norms is None else nn.ModuleList(feature_norms)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, device=device, dtype=dtype
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> the last stage's output (N, C, H / 32, W / 32), normalised unless that comes later."""
        x = cast("Tensor", self.stages(self.stem(x)))
        return x if self.norm_after_pool else cast("Tensor", self.norm(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify what `forward_features` returned; with `pre_logits`, pool (and normalise) only."""
        if not self.norm_after_pool:
            return cast("Tensor", self.head(x, pre_logits=pre_logits))
        x = self.head.global_pool(x)
        x = self.norm(x) if self.head.global_pool.is_identity() else self.norm(x[:, :, None, None]).flatten(1)
        x = self.head.drop(x)
        return x if pre_logits else cast("Tensor", self.head.fc(x))

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
            norm: Whether the last stage's output is normalised, unless `feature_norms` normalise every stage's.
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
                intermediates.append(self._feature(x, index, norm=norm and index == last))
        if intermediates_only:
            return intermediates
        reached_end = (not stop_early or last_wanted == last) and not self.norm_after_pool
        return self.norm(x) if reached_end else x, intermediates

    def _feature(self, x: Tensor, index: int, *, norm: bool) -> Tensor:
        if self.feature_norms is not None:
            return cast("Tensor", self.feature_norms[index](x))
        return cast("Tensor", self.norm(x)) if norm else x

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
        if self.feature_norms is not None:
            # What is not asked for is never run, and would have no gradient.
            self.feature_norms = nn.ModuleList(
                norm if index in wanted else nn.Identity()
                for index, norm in enumerate(self.feature_norms[: last_wanted + 1])
            )
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
        like = next(self.parameters())
        self.num_classes = num_classes
        # timm's own arguments for device and type are younger than the oldest version that we allow.
        with torch.device(like.device):
            self.head.reset(num_classes, pool_type=global_pool)
        self.head.to(like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass of training instead of keeping its activations."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    def __prepare_scriptable__(self) -> HierarchicalBackbone:
        """Refuse ``torch.jit.script``, which asks this of every module; the operator chooses its backend in Python.

        Raises:
            InputError: Always.
        """
        check(
            False,
            "a compiler that runs the Python of a network",
            "torch.jit.script",
            "use torch.compile or torch.export",
        )
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beyond the one-dimensional ones."""
        return set()
