"""A batch, and reading one: the same tensors in whichever process it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset, default_collate

from widefield._core.errors import InputError, WidefieldError
from widefield.data.errors import UndecodableImageError
from widefield.data.randomness import preserved_global_generators, seed_global_generators, seed_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image
    from torch import Tensor

    from widefield.data.order import BatchRequest, TrainingOrder
    from widefield.data.source import ImageSource
    from widefield.data.transforms import Transform


@dataclass
class Batch:
    """Images of one step on one process."""

    images: Tensor
    """Normalised images (N, 3, H, W), float32."""
    targets: Tensor
    """Class indices (N,), int64; or soft targets (N, classes), float32, where images were mixed."""
    indices: Tensor
    """Place of each image in the source (N,), int64."""

    def __len__(self) -> int:
        return len(self.indices)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; torch's loader calls this."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.indices.pin_memory())


@dataclass(frozen=True)
class Training:
    """What training adds to reading: random transforms, replacements from the order, mixing."""

    seed: int
    rank: int
    order: TrainingOrder
    mixing: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None


@dataclass(frozen=True)
class BatchReading:
    """What came of reading a batch."""

    batch: Batch | None
    """None where every image of it was left out."""
    skipped: dict[int, str]
    """Why the images that could not be decoded could not, by their place in the source."""

    def pin_memory(self) -> BatchReading:
        """Return the reading with its batch in page-locked memory; torch's loader calls this."""
        return BatchReading(self.batch and self.batch.pin_memory(), self.skipped)


class BatchReader(Dataset["BatchReading | WidefieldError"]):
    """Reads the batch that a request names, with draws that depend on the request alone.

    Args:
        source: The images.
        transform: From an RGB image to a tensor.
        skip: Whether images that cannot be decoded are left out (evaluation) or replaced (training); else they raise.
        training: What training adds, or None for evaluation.
    """

    def __init__(self, source: ImageSource, transform: Transform, *, skip: bool, training: Training | None) -> None:
        self._source = source
        self._transform = transform
        self._skip = skip
        self._training = training

    def __getitem__(self, request: BatchRequest) -> BatchReading | WidefieldError:
        # Returned, not raised: torch would hand a traceback of the worker to the main process instead of the sentence.
        try:
            with preserved_global_generators():
                return self._read(request)
        except WidefieldError as error:
            return error

    def _read(self, request: BatchRequest) -> BatchReading:
        images: list[Tensor] = []
        targets: list[int] = []
        indices: list[int] = []
        skipped: dict[int, str] = {}
        for place, wanted in enumerate(request.indices):
            loaded = self._load(wanted, skipped)
            index = wanted
            if loaded is None:
                if self._training is None:
                    continue
                index, loaded = self._replacement(request.epoch, request.position + place, skipped)
            if self._training is not None:
                seed_global_generators(seed_of("sample", self._training.seed, request.epoch, wanted))
            images.append(self._transform(loaded[0]))
            targets.append(loaded[1])
            indices.append(index)
        if not images:
            return BatchReading(None, skipped)
        # In a loader process this stacks into shared memory, which saves a copy of the whole batch on its way out.
        stacked, labels = default_collate(images), torch.tensor(targets, dtype=torch.int64)
        if self._training is not None and self._training.mixing is not None:
            key = ("mixing", self._training.seed, request.epoch, request.batch, self._training.rank)
            seed_global_generators(seed_of(*key))
            stacked, labels = self._training.mixing(stacked, labels)
        return BatchReading(Batch(stacked, labels, torch.tensor(indices, dtype=torch.int64)), skipped)

    def _load(self, index: int, skipped: dict[int, str]) -> tuple[Image.Image, int] | None:
        try:
            return self._source.load(index)
        except UndecodableImageError as error:
            if not self._skip:
                raise
            skipped[index] = str(error)
            return None

    def _replacement(self, epoch: int, position: int, skipped: dict[int, str]) -> tuple[int, tuple[Image.Image, int]]:
        """Return the next image of the epoch's order that can be decoded."""
        assert self._training is not None
        order = self._training.order.indices(epoch)
        for step in range(1, len(order)):
            index = int(order[(position + step) % len(order)])
            if index not in skipped and (loaded := self._load(index, skipped)) is not None:
                return index, loaded
        raise InputError(
            "images that can be decoded",
            f"none among {len(order)}, {self._source.name(int(order[position]))!r} for one",
            "give the folder or archive of the images",
        )
