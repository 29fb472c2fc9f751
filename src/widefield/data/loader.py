"""Batches that depend on the seed, the epoch and their number alone, whatever the number of loader processes."""

from __future__ import annotations

import functools
import logging
import os
import time
from contextlib import nullcontext, suppress
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from widefield._core.checks import check
from widefield._core.errors import RunError, WidefieldError
from widefield.data.batch import Batch, BatchReader, BatchReading, Training
from widefield.data.order import EvaluationOrder, TrainingOrder
from widefield.data.transforms import batch_mixing, evaluation_transform, train_transform
from widefield.data.worker_signals import deaths_told, orders_held_back, outlive_orders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from widefield.data.config import AugmentationConfig, DataConfig
    from widefield.data.order import BatchRequest, Order
    from widefield.data.source import ImageSource

_log = logging.getLogger(__name__)


class ImageLoader:
    """The batches of a source on one process; made by `train_loader` and `evaluation_loader`.

    Batch b of epoch e is the same tensor whatever the number of workers, wherever iteration starts, and whatever was
    drawn before; the global random generators of the calling process are left as they were. Worker processes live on
    from epoch to epoch.

    Args:
        reader: Reads a requested batch.
        order: What each batch holds.
        workers: Loader processes; 0 reads in the calling process.
    """

    def __init__(self, reader: BatchReader, order: Order, *, workers: int) -> None:
        self._reader = reader
        self._order = order
        self._workers = workers
        self._idle: _Pipeline | None = None
        self._skipped: set[int] = set()

    def __len__(self) -> int:
        """Return the number of batches of an epoch on this process."""
        return len(self._order)

    @property
    def num_samples(self) -> int:
        """Images of an epoch on this process, those included that are then left out as undecodable."""
        return self._order.num_samples

    @property
    def num_skipped(self) -> int:
        """Different images found undecodable in the batches yielded so far, and those noted by `note_skipped`.

        An image counts once over all epochs.
        """
        return len(self._skipped)

    @property
    def skipped_indices(self) -> tuple[int, ...]:
        """Places in the source of the images that `num_skipped` counts, sorted."""
        return tuple(sorted(self._skipped))

    def note_skipped(self, places: Iterable[int]) -> None:
        """Count images that an earlier process of the run has found undecodable, by their places in the source."""
        self._skipped.update(places)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            epoch: Number of the epoch.
            start: Number of the first batch to yield; those before it are not read.

        Yields:
            Batches `start` and following. In evaluation a batch of which no image can be decoded is left out.

        Raises:
            UndecodableImageError: If an image cannot be decoded and such images are not to be skipped.
            InputError: If no image at all can be decoded, or `start` is outside the epoch.
            RunError: If a loader process was killed.
        """
        check(
            0 <= start <= len(self),
            f"a first batch from 0 to {len(self)}",
            f"{start}",
            "resume with the data and batch size of the first run",
        )
        return self._epoch(epoch, start)

    def close(self) -> None:
        """End the worker processes; a later epoch starts them again."""
        self._idle = None

    def _epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        # Taken out while in use, so that a second iteration at the same time gets workers of its own.
        pipeline = self._idle or _Pipeline(self._reader, self._workers)
        self._idle = None
        killed = False
        reading = None
        try:
            requests = [self._order.request(epoch, batch) for batch in range(start, len(self))]
            for reading in pipeline.read(requests):
                if isinstance(reading, WidefieldError):
                    raise reading
                self._record(reading.skipped)
                if reading.batch is not None:
                    yield reading.batch
        except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
            killed = self._workers > 0 and _tells_of_a_killed_worker(error)
            if not killed:
                raise
        finally:
            if not killed:
                self._idle = pipeline
            # The traceback of an error keeps this frame: workers that it kept, too, would outlive close().
            pipeline = reading = None
        if killed:
            raise RunError(
                "A loader process was killed, most often for want of memory or of shared memory: lower --data.workers "
                "or --data.batch-size, or raise the memory limits."
            )

    def _record(self, skipped: dict[int, str]) -> None:
        for index, sentence in skipped.items():
            if index not in self._skipped:
                self._skipped.add(index)
                _log.warning("an image is left out. %s", sentence)


class _Pipeline:
    """A torch loader whose requests are replaced for each epoch."""

    def __init__(self, reader: BatchReader, workers: int) -> None:
        self._requests: list[BatchRequest] = []
        self._is_started = False
        self._loader = DataLoader(
            reader,
            batch_size=None,
            sampler=self._requests,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
            # Without a generator of its own, starting an epoch would draw from torch's global one.
            generator=torch.Generator(),
            worker_init_fn=functools.partial(outlive_orders, os.getpid()) if workers else None,
        )

    def read(self, requests: list[BatchRequest]) -> Iterator[BatchReading | WidefieldError]:
        self._requests[:] = requests
        if not requests:
            return
        with deaths_told(), nullcontext() if self._is_started else orders_held_back():
            readings = iter(self._loader)
        self._is_started = True
        while True:
            with deaths_told():
                reading = next(readings, None)
            if reading is None:
                return
            yield reading


def _tells_of_a_killed_worker(error: Exception) -> bool:
    """Return whether an error of torch's loader comes of the death of a worker, not of what the worker did."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    if str(error).startswith("Caught "):
        return False
    # The pipes of a dead worker can break before its signal is in: torch raises then, wherever the main process is.
    with suppress(RuntimeError):
        time.sleep(1.0)
    return True


def _as_it_is(reading: Any) -> Any:
    return reading


def train_loader(
    source: ImageSource,
    data: DataConfig,
    augmentation: AugmentationConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> ImageLoader:
    """Return the training batches of one process: shuffled anew each epoch, augmented, all of one size.

    Every image is augmented by draws seeded with (seed, epoch, image), and a batch is mixed by draws seeded with (seed,
    epoch, batch, rank). Process r holds the r-th slice of each global batch. The images that do not fill a last global
    batch are left out of that epoch.

    Args:
        source: The images.
        data: Batch size over all processes, workers, size and normalisation of the images.
        augmentation: How images are varied.
        seed: Seed of the orders and of the augmentation.
        rank: This process.
        world_size: Number of processes.

    Returns:
        The loader.

    Raises:
        InputError: If there are fewer images than one batch, the processes cannot share a batch evenly, or the
            augmentation is impossible.
    """
    order = TrainingOrder(len(source), data.batch_size, seed=seed, rank=rank, world_size=world_size)
    mixing = batch_mixing(augmentation, len(source.classes), order.local_size)
    training = Training(seed, rank, order, mixing)
    transform = train_transform(data, augmentation)
    reader = BatchReader(source, transform, skip=data.on_error == "skip", training=training)
    return ImageLoader(reader, order, workers=data.workers)


def evaluation_loader(source: ImageSource, data: DataConfig, *, rank: int = 0, world_size: int = 1) -> ImageLoader:
    """Return the batches of one process for evaluation: in order, without augmentation, every image once.

    Process r holds the r-th contiguous share; shares differ by one image at most. The last batch may be smaller.

    Args:
        source: The images.
        data: Batch size over all processes, workers, size and normalisation of the images.
        rank: This process.
        world_size: Number of processes.

    Returns:
        The loader.

    Raises:
        InputError: If the processes cannot share a batch evenly.
    """
    order = EvaluationOrder(len(source), data.batch_size, rank=rank, world_size=world_size)
    reader = BatchReader(source, evaluation_transform(data), skip=data.on_error == "skip", training=None)
    return ImageLoader(reader, order, workers=data.workers)
