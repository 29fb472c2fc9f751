"""Steps whose loss or gradient is not finite: left out, counted, and too many of them in a row end the run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from widefield._core.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from accelerate import Accelerator
    from torch import nn


class SkippedSteps:
    """Decides which steps are skipped, the same on all ranks.

    Deciding needs the numbers themselves, so that on a GPU every step waits for the device.

    Args:
        limit: Skipped steps in a row at which the run ends.
        model: Its buffers, such as BatchNorm's statistics, are put back after a skipped step: they have seen the same
            values as the loss.
        accelerator: Of the run.
        has_checkpoint: Says whether there is one, for the message of the last of too many steps.
    """

    def __init__(
        self, limit: int, model: nn.Module, accelerator: Accelerator, has_checkpoint: Callable[[], bool]
    ) -> None:
        self._limit, self._accelerator, self._has_checkpoint = limit, accelerator, has_checkpoint
        self._buffers = list(model.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._in_a_row = self._interval = self._epoch = 0

    @torch.no_grad()
    def begin(self) -> None:
        """Note the buffers; called before the first batch of a step."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def is_skipped(self, step: int, lr: float, loss: Tensor, norm: Tensor) -> bool:
        """Return whether to leave out this step; called on all ranks.

        Args:
            step: Its number, from 1.
            lr: Its learning rate, for the message.
            loss: Mean loss of its batches on this rank, detached.
            norm: Norm of the gradient, not scaled.

        Raises:
            RunError: If it is one too many in a row.
        """
        odd = ~(torch.isfinite(loss).reshape(()) & torch.isfinite(norm).reshape(()))
        if self._accelerator.num_processes > 1:
            flag = odd.to(torch.float32)
            dist.all_reduce(flag)
            odd = flag > 0
        if not bool(odd):
            self._in_a_row = 0
            return False
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._kept)
        self._in_a_row, self._interval, self._epoch = self._in_a_row + 1, self._interval + 1, self._epoch + 1
        if self._in_a_row >= self._limit:
            times = "in 1 step" if self._in_a_row == 1 else f"in {self._in_a_row} steps in a row"
            numbers = [float(loss), float(norm)]
            here = (
                "on another process"
                if all(map(math.isfinite, numbers))
                else f"loss {numbers[0]:.3g}, norm of the gradient {numbers[1]:.3g}"
            )
            raise RunError(
                f"The loss or its gradient was not finite {times}, the last of them step {step} with learning rate "
                f"{lr:.3g} ({here}): lower optimizer.lr, lengthen schedule.warmup_epochs, set trainer.clip_norm or "
                "trainer.float32_modules, or raise trainer.skip_nonfinite; "
                + ("the last checkpoint is kept." if self._has_checkpoint() else "there is no checkpoint yet.")
            )
        return True

    def take_interval(self) -> int:
        """Return how many steps were skipped since the last call."""
        count, self._interval = self._interval, 0
        return count

    def take_epoch(self) -> int:
        """Return how many steps of the epoch were skipped, and begin the next."""
        count, self._epoch = self._epoch, 0
        return count

    def state(self) -> dict[str, int]:
        """Return the counts, as JSON."""
        return {"in_a_row": self._in_a_row, "interval": self._interval, "epoch": self._epoch}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the counts to what `state` returned, or to zero if it is empty."""
        self._in_a_row, self._interval, self._epoch = (
            int(state.get(name, 0)) for name in ("in_a_row", "interval", "epoch")
        )
