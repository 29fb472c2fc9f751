"""Sparse training as a part of a run: masks drawn before the first step, kept in its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from widefield.data import ImageLoader
from widefield.engine import RunContext, Task, move_batch
from widefield.sparsity import Masks, SparseTraining, SparsityConfig, initial_masks
from widefield.sparsity.selection import selected_by

_ADAPTERS = "adapters."


class SparsityExtension:
    """Keeps the network and its average sparse, and its masks in the checkpoints.

    Args:
        config: Densities, criteria and schedule.
        masks: The first masks.
    """

    name = "sparsity"
    is_required = True

    def __init__(self, config: SparsityConfig, masks: Masks) -> None:
        self._config = config
        self._masks = masks
        self._training: SparseTraining | None = None

    @property
    def training(self) -> SparseTraining:
        """The masks at work, once the run has started."""
        assert self._training is not None
        return self._training

    def started(self, context: RunContext) -> None:
        """Put the masks on the network and its average."""
        self._training = SparseTraining(
            context.model,
            context.optimizer,
            self._config,
            total_steps=context.epochs * context.steps_per_epoch,
            masks=self._masks,
        )
        if context.ema is not None:
            self._training.follow(context.ema)

    def after_step(self, step: int) -> None:
        """Nothing: the hook on the optimizer has done it."""

    def state_dict(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Return the masks, packed to bits, after a look whether all processes have the same."""
        self.training.check_ranks()
        return self.training.state_dict(), {}

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take the masks of a checkpoint."""
        self.training.load_state_dict(tensors)

    def metrics(self) -> Mapping[str, float]:
        """Return the share of the masked tensors' weights that are there."""
        return {"density": self.training.masks.density}

    def closed(self) -> None:
        """Leave the optimizer as it was."""
        self.training.close()


def first_masks(
    model: nn.Module, config: SparsityConfig, task: Task, loader: ImageLoader, device: torch.device
) -> Masks:
    """Draw the first masks of a run; adapters for a teacher's features stay dense.

    Args:
        model: What is trained.
        config: Sparsity, allocation, selection and seed.
        task: Gives the loss for the allocation "snip".
        loader: Training batches, of which "snip" sees the first of the first epoch.
        device: Where the run computes.

    Raises:
        InputError: As `widefield.sparsity.initial_masks`.
    """
    chosen = selected_by(config)

    def batches() -> Iterator[Any]:
        for batch in loader.epoch(0):
            yield move_batch(batch, device, False)

    return initial_masks(
        model.to(device),
        config,
        batches=batches(),
        loss=task.loss,
        select=lambda name, parameter: not name.startswith(_ADAPTERS) and chosen(name, parameter),
    )
