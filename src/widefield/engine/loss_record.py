"""The training loss of a run: kept on the device step by step, read from it rarely, checked when read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from widefield._core.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator


class LossRecord:
    """Collects the loss of every step without a synchronisation, and averages over ranks, intervals and the epoch.

    Sums run in step order, value by value, so that they do not depend on when the device was read.

    Args:
        has_checkpoint: Says whether there is one, for the message of a loss that is not finite.
    """

    def __init__(self, has_checkpoint: Callable[[], bool]) -> None:
        self._has_checkpoint = has_checkpoint
        self._pending: list[tuple[int, float, int, Tensor]] = []
        self._interval: list[float] = []
        self._epoch_sum = 0.0
        self._epoch_batches = 0

    def add(self, step: int, lr: float, batches: int, loss: Tensor) -> None:
        """Note the loss of a step.

        Args:
            step: Number of the optimizer update.
            lr: Its learning rate, for the message if the loss is not finite.
            batches: Batches that were averaged in it.
            loss: Their mean loss on this rank, detached, a scalar.
        """
        self._pending.append((step, lr, batches, loss.reshape(())))

    def read(self, accelerator: Accelerator) -> None:
        """Read what was added since the last call; must be called on all ranks.

        Args:
            accelerator: Averages over the ranks.

        Raises:
            RunError: If a loss is not finite on some rank.
        """
        if not self._pending:
            return
        losses = torch.stack([loss for *_, loss in self._pending])
        losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
        values: list[float] = accelerator.reduce(losses, "mean").tolist()  # pyright: ignore[reportAttributeAccessIssue]
        for (step, lr, batches, _), value in zip(self._pending, values, strict=True):
            if not math.isfinite(value):
                raise RunError(
                    f"The loss is {value} at step {step} with learning rate {lr:.3g}: lower optimizer.lr, lengthen "
                    "schedule.warmup_epochs, set trainer.clip_norm or use trainer.precision no, and start again; "
                    + (
                        "the last checkpoint before it is kept."
                        if self._has_checkpoint()
                        else "there is no checkpoint before it."
                    )
                )
            self._interval.append(value)
            self._epoch_sum += value * batches
            self._epoch_batches += batches
        self._pending.clear()

    def take_interval(self) -> float | None:
        """Return the mean loss of the steps read since the last call, or None if there are none."""
        if not self._interval:
            return None
        total = 0.0
        for value in self._interval:
            total += value
        mean = total / len(self._interval)
        self._interval.clear()
        return mean

    def take_epoch(self) -> float:
        """Return the mean loss over the batches of the epoch, and begin the next."""
        mean = self._epoch_sum / max(self._epoch_batches, 1)
        self._epoch_sum, self._epoch_batches = 0.0, 0
        return mean

    def state(self) -> dict[str, Any]:
        """Return what was read and not yet taken, as JSON; call `read` before."""
        return {"interval": list(self._interval), "epoch_sum": self._epoch_sum, "epoch_batches": self._epoch_batches}

    def restore(self, state: dict[str, Any]) -> None:
        """Set the record to what `state` returned."""
        self._interval = list(state["interval"])
        self._epoch_sum, self._epoch_batches = state["epoch_sum"], state["epoch_batches"]
