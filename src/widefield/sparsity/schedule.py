"""When masks change, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass

from widefield._core.checks import check
from widefield.sparsity.config import SparsityConfig


def cosine(step: int, total_steps: int, first: float, last: float) -> float:
    """Return half a cosine from `first` at step 0 to `last` at `total_steps`, as torch's `CosineAnnealingLR`."""
    share = min(step / total_steps, 1.0)
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def constant(step: int, total_steps: int, first: float, last: float) -> float:
    """Return `first`."""
    return first


SCHEDULES = {"cosine": cosine, "constant": constant}


@dataclass(frozen=True, kw_only=True)
class UpdateSchedule:
    """The changes of masks in a run of `total_steps` optimizer updates, counted from 1.

    Args:
        config: Fractions, interval and end.
        total_steps: Length of the run.

    Raises:
        InputError: If there are no steps.
    """

    config: SparsityConfig
    """Fractions, interval and end."""

    total_steps: int
    """Length of the run in optimizer updates."""

    def __post_init__(self) -> None:
        check(self.total_steps > 0, "a run of at least one step", f"{self.total_steps}", "give its real length")

    @property
    def last_step(self) -> int:
        """The last step after which masks may change."""
        return min(int(self.config.last_update_share * self.total_steps), self.total_steps - 1)

    def is_update(self, step: int) -> bool:
        """Return whether masks change after this optimizer update."""
        every = self.config.update_every
        return every is not None and 0 < step <= self.last_step and step % every == 0

    def updates_before(self, step: int) -> int:
        """Return how many changes of masks there are up to this optimizer update."""
        every = self.config.update_every
        return 0 if every is None else min(step, self.last_step) // every

    def fraction(self, step: int) -> float:
        """Return the share of active weights that is replaced after this optimizer update."""
        config = self.config
        last = min(config.min_prune_fraction, config.prune_fraction)
        return SCHEDULES[config.schedule](step, self.total_steps, config.prune_fraction, last)
