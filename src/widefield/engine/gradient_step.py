"""One optimizer update: the batches, their gradients, and the decision whether they count."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from widefield.engine.devices import move_batch
from widefield.engine.sharding import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator

    from widefield.engine.config import TrainerConfig
    from widefield.engine.protocol import Task
    from widefield.engine.skipped_steps import SkippedSteps


class GradientStep:
    """Runs the batches of a step through the model and updates it.

    Args:
        task: Gives the loss.
        called: The model with all its wrappers.
        model: The model that is trained.
        optimizer: Over its parameters, in accelerate's wrapper where losses are scaled.
        accelerator: Of the run.
        config: Clipping, accumulation and memory format.
        without_sync: Context in which the gradients of a batch are not yet averaged over the processes.
        skipped: Decides on steps that are not finite; None to take every step.
    """

    def __init__(
        self,
        *,
        task: Task,
        called: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        config: TrainerConfig,
        without_sync: Callable[[], AbstractContextManager[Any]],
        skipped: SkippedSteps | None,
    ) -> None:
        self._task, self._called, self._optimizer = task, called, optimizer
        self._accelerator, self._config = accelerator, config
        self._without_sync, self._skipped = without_sync, skipped
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(self, batches: Iterator[Any], size: int, step: int, lr: float) -> tuple[Tensor, bool]:
        """Take `size` batches and update the model; the gradients stay until `clear`.

        Args:
            batches: Of this rank.
            size: Batches whose gradients are averaged.
            step: Number of the update, from 1.
            lr: Its learning rate, for messages.

        Returns:
            The mean loss on this rank, detached, and whether the model was left as it is.

        Raises:
            RunError: If too many steps in a row are not finite.
        """
        config, accelerator = self._config, self._accelerator
        if self._skipped is not None:
            self._skipped.begin()
        loss: Tensor | None = None
        for index in range(size):
            batch = move_batch(next(batches), accelerator.device, config.channels_last)
            with nullcontext() if index == size - 1 else self._without_sync():
                part = self._task.loss(self._called, batch)
                if size > 1:
                    part = part / size
                accelerator.backward(part)
            part = part.detach()
            loss = part if loss is None else loss + part
        assert loss is not None
        norm: Tensor | None = None
        if config.clip_norm is not None:
            norm = accelerator.clip_grad_norm_(self._parameters, config.clip_norm)
        if self._skipped is not None and self._skipped.is_skipped(step, lr, loss, self._norm(norm)):
            if accelerator.scaler is not None:
                accelerator.scaler.update()
            return loss, True
        self._optimizer.step()
        return loss, False

    def clear(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad()

    def _norm(self, norm: Tensor | None) -> Tensor:
        if norm is None:
            self._accelerator.unscale_gradients()
            grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        return whole(norm)
