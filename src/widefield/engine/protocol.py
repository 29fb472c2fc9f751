"""What the trainer asks of the data, of the problem that is learned, and of extensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor, nn


class Loader(Protocol):
    """Batches of this rank; every rank yields the same number of them."""

    def __len__(self) -> int:
        """Return the number of batches per epoch and rank."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch.

        A pure function of its arguments: the same batches come whenever it is called, whatever the state of the
        global random generators, so that a resumed run sees what an uninterrupted one would have seen.

        Args:
            epoch: Index of the epoch, from 0.
            start: Index of the first batch to yield.
        """
        ...


class Task(Protocol):
    """The loss that is minimised and the score by which the best weights are chosen."""

    @property
    def monitor(self) -> str | None:
        """Key of `evaluate()`'s result that decides which epoch is the best; larger is better.

        None where there is nothing to validate on: `evaluate` is not called, and the last weights are kept.
        """
        ...

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss over the local batch, a scalar that can be differentiated.

        Args:
            model: The model as it must be called: with more than one process only its `forward` may be used.
            batch: What the loader yielded, on the device of the model.
        """
        ...

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return the validation metrics; called on every rank, and returns the same on every rank.

        Args:
            model: The model in evaluation mode.
            device: Where it lies and where batches belong.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What an extension is told of the run that it takes part in."""

    model: nn.Module
    """The module that is trained, without wrappers; with `trainer.sharding` "fsdp" its parameters are `DTensor`s."""

    optimizer: torch.optim.Optimizer
    """Its optimizer, without accelerate's wrapper."""

    ema: nn.Module | None
    """The averaged module, with the same names as `model`, if there is one."""

    steps_per_epoch: int
    """Optimizer updates in an epoch."""

    epochs: int
    """Epochs of the run."""

    rank: int
    """Index of this process."""

    world_size: int
    """Number of processes."""

    is_compiled: bool
    """Whether the steps go through `torch.compile`, which sees no hooks that are added to modules later."""


class Extension(Protocol):
    """Something that takes part in a run, and has a part in its checkpoints."""

    name: str
    """Where its state lies in a checkpoint: a word without slashes, of its own within the run."""

    is_required: bool
    """Whether a run cannot be resumed exactly without its state."""

    def started(self, context: RunContext) -> None:
        """Begin, before the first step; in a resumed run before model and optimizer are set to the checkpoint."""
        ...

    def after_step(self, step: int) -> None:
        """Follow an optimizer update and the update of the average; the gradients of the step are still there.

        Steps that are skipped because they are not finite are not told.

        Args:
            step: Its number, from 1.
        """
        ...

    def state_dict(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Return tensors and a JSON value for a checkpoint; called on all ranks, and the first one's are kept."""
        ...

    def load_state_dict(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave, on the CPU; called after model, optimizer and average were restored."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Return what the row of the epoch that ends should hold; called on all ranks, equal on all."""
        ...

    def closed(self) -> None:
        """End, after the run or its failure, if `started` returned."""
        ...
