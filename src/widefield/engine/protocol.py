"""What the trainer asks of the data and of the problem that is learned."""

from __future__ import annotations

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

    monitor: str
    """Key of `evaluate()`'s result that decides which epoch is the best; larger is better."""

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
