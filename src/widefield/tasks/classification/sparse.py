"""Sparse training as a part of a run: masks drawn before the first step, kept in its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from widefield.data import Batch, ImageSource, train_loader
from widefield.engine import RunContext, move_batch
from widefield.engine.sync_batch_norm import convert_sync_batch_norm
from widefield.sparsity import Masks, SparseTraining, SparsityConfig, initial_masks
from widefield.sparsity.selection import selected_by
from widefield.tasks.classification.config import RunConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

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


def first_masks(model: nn.Module, config: RunConfig, source: ImageSource, accelerator: Accelerator) -> Masks:
    """Draw the first masks of a run; adapters for a teacher's features stay dense.

    The allocation "snip" sees what SLaK's code shows it: the first batches of the first epoch, cropped, augmented and
    erased as in training but not mixed; the cross-entropy of their classes without smoothing, with a teacher or
    without; no autocast; gradients averaged over the processes, and synchronised BatchNorm where the run has it.

    Args:
        model: What is trained.
        config: The run, with a sparsity.
        source: The training images, for "snip".
        accelerator: Where the run computes, and with how many processes.

    Raises:
        InputError: As `widefield.sparsity.initial_masks`.
    """
    sparsity = config.sparsity
    assert sparsity is not None
    chosen = selected_by(sparsity)
    ranks = accelerator.num_processes

    def batches() -> Iterator[Batch]:
        loader = train_loader(
            source,
            config.data,
            replace(config.augmentation, mixup=0.0, cutmix=0.0),
            seed=config.trainer.seed,
            rank=accelerator.process_index,
            world_size=ranks,
        )
        try:
            for batch in loader.epoch(0):
                yield move_batch(batch, accelerator.device, False)
        finally:
            loader.close()

    def loss(copied: nn.Module, batch: Batch) -> Tensor:
        if ranks > 1 and config.trainer.sync_batch_norm:
            convert_sync_batch_norm(copied)
        output: Any = copied.train()(batch.images)
        # A student with adapters returns its features too.
        return F.cross_entropy(output[0] if isinstance(output, tuple) else output, batch.targets)

    return initial_masks(
        model.to(accelerator.device),
        sparsity,
        batches=batches(),
        loss=loss,
        select=lambda name, parameter: not name.startswith(_ADAPTERS) and chosen(name, parameter),
    )
