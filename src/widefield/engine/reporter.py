"""What a run tells the person who watches it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Told about a run as it goes, on the main process alone; epochs and steps count from 1."""

    def run_started(self, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Begin: `first_step` is 1, or the step after the checkpoint of a resumed run."""
        ...

    def step_done(self, epoch: int, step: int, loss: float, lr: float) -> None:
        """Note an optimizer update; called every `log_every_steps` with the mean loss since the last call."""
        ...

    def epoch_done(self, epoch: int, row: Mapping[str, float], is_best: bool) -> None:
        """Note an epoch with its row of `metrics.csv`."""
        ...

    def run_done(self) -> None:
        """End, after the last checkpoint."""
        ...


class LogReporter:
    """Sends everything to `logging`, at level INFO."""

    def run_started(self, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Log the length of the run."""
        logger.info("training for %d epochs of %d steps, from step %d", epochs, steps_per_epoch, first_step)

    def step_done(self, epoch: int, step: int, loss: float, lr: float) -> None:
        """Log the loss."""
        logger.info("epoch %d, step %d: loss %.5g, lr %.3g", epoch, step, loss, lr)

    def epoch_done(self, epoch: int, row: Mapping[str, float], is_best: bool) -> None:
        """Log the metrics."""
        shown = ", ".join(f"{name} {value:.5g}" for name, value in row.items() if name != "epoch")
        logger.info("epoch %d done: %s%s", epoch, shown, " (best so far)" if is_best else "")

    def run_done(self) -> None:
        """Log the end."""
        logger.info("training done")
