"""Choosing the validation images where a data set has no validation split of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from widefield._core.checks import check
from widefield.data.randomness import random_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from widefield.data.source import LabelledSource


def stratified_split(
    targets: Sequence[int] | np.ndarray, classes: Sequence[str], fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Divide images into two parts with the same share of every class.

    Each class is drawn by itself, so that adding a class leaves the division of the others as it was.

    Args:
        targets: The class index of each image.
        classes: Name of each class.
        fraction: Share of each class for the second part, rounded, but at least one image and never all.
        seed: Seed of the draw.

    Returns:
        The sorted indices of the first part, and those of the second.

    Raises:
        InputError: If a class has fewer than two images.
    """
    labels = np.asarray(targets)
    kept: list[np.ndarray] = []
    drawn: list[np.ndarray] = []
    for index, name in enumerate(classes):
        members = np.flatnonzero(labels == index)
        check(
            len(members) >= 2,
            "at least 2 images of every class to split off a validation part",
            f"{len(members)} of class {name!r}",
            "add images of it, remove the class, or provide a validation split",
        )
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        order = random_state("split", seed, name).permutation(members)
        drawn.append(order[:count])
        kept.append(order[count:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(drawn))


class SubsetSource:
    """Some images of another source.

    Args:
        source: The whole.
        indices: Which of its images, in this order.
    """

    def __init__(self, source: LabelledSource, indices: np.ndarray) -> None:
        self._source = source
        self._indices = indices
        self.classes = source.classes
        self.targets = np.asarray(source.targets)[indices]

    def __len__(self) -> int:
        return len(self._indices)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return image number `index` and its class index; see `ImageSource.load`."""
        return self._source.load(int(self._indices[index]))

    def name(self, index: int) -> str:
        """Return the path of image number `index`; see `ImageSource.name`."""
        return self._source.name(int(self._indices[index]))

    def member(self, index: int) -> str:
        """Return what names image number `index` within the set; see `LabelledSource.member`."""
        return self._source.member(int(self._indices[index]))

    def signature(self, index: int) -> str:
        """Return what tells image number `index` from another of its name; see `LabelledSource.signature`."""
        return self._source.signature(int(self._indices[index]))
