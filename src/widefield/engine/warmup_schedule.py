"""The published learning rate of every update: a linear rise and half a cosine, or the peak throughout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from timm.scheduler.scheduler import Scheduler

if TYPE_CHECKING:
    import torch


class WarmupSchedule(Scheduler):
    """A timm scheduler over updates; timm's own cosine reaches the peak an update later and has no flat form.

    The rate of the first update is set at once, that of the others by `step_update`. It depends on the number of the
    update alone.

    Args:
        optimizer: Its current learning rates are the peaks; a group with an `lr_scale` gets that multiple of the rate.
        shape: "cosine" or "constant" after the warmup.
        updates: Optimizer updates of the run.
        warmup: Those of them that rise, both ends included.
        start: Learning rate of the first of these.
        end: Learning rate that the cosine has come down to after the last update.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        shape: Literal["cosine", "constant"],
        updates: int,
        warmup: int,
        start: float,
        end: float,
    ) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.shape, self.updates, self.warmup, self.start, self.end = shape, updates, warmup, start, end
        self.step_update(0)

    def _get_lr(self, t: int) -> list[float]:
        return [self._rate(t, peak) for peak in self.base_values]

    def _rate(self, update: int, peak: float) -> float:
        if update < self.warmup:
            return self.start + (peak - self.start) * update / max(self.warmup - 1, 1)
        if self.shape == "constant":
            return peak
        # The trainer asks for the update after the last one too.
        share = min((update - self.warmup) / max(self.updates - self.warmup, 1), 1.0)
        return self.end + (peak - self.end) * (1 + math.cos(math.pi * share)) / 2
