"""Which images make up which batch, on which process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from widefield._core.checks import check
from widefield.data.randomness import random_state

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class BatchRequest:
    """One batch to read, as it is sent to a loader process."""

    epoch: int
    batch: int
    indices: tuple[int, ...]
    """Indices of the images in the source."""
    position: int
    """Place of the first of them in the order of the epoch."""


class Order(Protocol):
    """The batches of an epoch on one process."""

    num_samples: int
    """Images of an epoch on this process."""

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this process."""
        ...

    def request(self, epoch: int, batch: int) -> BatchRequest:
        """Return what batch number `batch` of an epoch holds."""
        ...


class TrainingOrder:
    """A new order each epoch, in global batches of one size, of which each process takes its slice.

    Args:
        count: Number of images.
        batch_size: Images in a batch over all processes.
        seed: Seed of the orders.
        rank: This process.
        world_size: Number of processes.

    Raises:
        InputError: If the processes cannot share a batch evenly, or there are fewer images than one batch.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, rank: int, world_size: int) -> None:
        self.local_size = local_batch_size(batch_size, rank, world_size)
        self._batches = count // batch_size
        check(
            self._batches > 0,
            f"at least one full batch of {batch_size} training images",
            f"{count} image{'s' if count != 1 else ''}",
            f"lower --data.batch-size to {count} or less" if count else "give a data set with images",
        )
        self.num_samples = self._batches * self.local_size
        self._count = count
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._latest: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._batches

    def indices(self, epoch: int) -> np.ndarray:
        """Return all images in the order of an epoch, the last ones of which may be in no batch."""
        if self._latest is None or self._latest[0] != epoch:
            self._latest = (epoch, random_state("order", self._seed, epoch).permutation(self._count))
        return self._latest[1]

    def request(self, epoch: int, batch: int) -> BatchRequest:
        """Return what batch number `batch` of an epoch holds on this process."""
        first = batch * self._batch_size + self._rank * self.local_size
        chosen = self.indices(epoch)[first : first + self.local_size]
        return BatchRequest(epoch, batch, tuple(chosen.tolist()), first)


class EvaluationOrder:
    """The order of the source: each process takes one contiguous share, no image is left out or repeated.

    Args:
        count: Number of images.
        batch_size: Images in a batch over all processes.
        rank: This process.
        world_size: Number of processes.

    Raises:
        InputError: If the processes cannot share a batch evenly.
    """

    def __init__(self, count: int, batch_size: int, *, rank: int, world_size: int) -> None:
        self._local_size = local_batch_size(batch_size, rank, world_size)
        self._start, self._stop = count * rank // world_size, count * (rank + 1) // world_size
        self.num_samples = self._stop - self._start

    def __len__(self) -> int:
        return -(-self.num_samples // self._local_size)

    def request(self, epoch: int, batch: int) -> BatchRequest:
        """Return what batch number `batch` holds on this process, in every epoch."""
        first = self._start + batch * self._local_size
        return BatchRequest(epoch, batch, tuple(range(first, min(first + self._local_size, self._stop))), first)


def local_batch_size(batch_size: int, rank: int, world_size: int) -> int:
    """Return the images of a batch on each of `world_size` processes.

    Raises:
        InputError: If they cannot share it evenly, or there is no such rank.
    """
    check(
        0 <= rank < world_size,
        f"a rank from 0 to {world_size - 1}",
        f"{rank}",
        "give the rank and the world size of one run",
    )
    check(
        batch_size % world_size == 0,
        "a batch size that the number of processes divides",
        f"{batch_size} for {world_size} processes",
        f"set --data.batch-size to {max(batch_size // world_size, 1) * world_size}",
    )
    return batch_size // world_size
