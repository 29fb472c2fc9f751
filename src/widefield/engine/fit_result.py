"""What a run has reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run has reached."""

    best_epoch: int
    """Epoch with the highest monitored metric, from 1; of equal ones the latest, which was trained longer.

    The last epoch where the task monitors nothing."""

    best: dict[str, float]
    """Validation metrics of that epoch, and those of the extensions."""

    last: dict[str, float]
    """The same of the last epoch."""

    history: list[dict[str, float]]
    """Rows of `metrics.csv`, one per epoch."""

    seconds: float
    """Time spent, over all processes that the run was resumed in."""

    best_weights: dict[str, Tensor]
    """State dict of the best epoch on the CPU: the averaged weights if the average is on."""

    steps: int
    """Optimizer updates done."""
