"""Real images that ship inside a dependency: no download, no files."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from widefield._core.checks import check_name
from widefield.data.split import SubsetSource, stratified_split

_SPLIT_SEED = 0
_VALIDATION_OF_ALL = 0.1
_TEST_OF_ALL = 0.2


class ArraySource:
    """Grey images held in memory.

    Args:
        images: Grey values 0..255, (N, H, W), uint8.
        targets: Class index of each, (N,).
        classes: Name of each class.
        title: What to call the set in names of its images.
    """

    def __init__(self, images: np.ndarray, targets: np.ndarray, classes: tuple[str, ...], title: str) -> None:
        self.images = images
        self.targets = targets
        self.classes = classes
        self._title = title

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return image number `index` and its class index; see `ImageSource.load`."""
        return Image.fromarray(self.images[index]).convert("RGB"), int(self.targets[index])

    def name(self, index: int) -> str:
        """Return the name of image number `index`; see `ImageSource.name`."""
        return f"{self._title}[{index}]"

    def member(self, index: int) -> str:
        """Return what names image number `index` within the set; see `LabelledSource.member`."""
        return str(index)

    def signature(self, index: int) -> str:
        """Return what tells image number `index` from another of its name; see `LabelledSource.signature`."""
        return ""


def embedded_parts(name: str) -> tuple[dict[str, SubsetSource], str]:
    """Return a set that is installed already, in its fixed parts.

    Args:
        name: "digits": scikit-learn's 1,797 8 x 8 images of handwritten digits (Alpaydin and Kaynak, UCI 1998).

    Returns:
        The parts "train", "validation" and "test" (70, 10 and 20 % of every class), and a description of them.

    Raises:
        InputError: If no set has that name.
    """
    check_name(name, ["digits"], "embedded data set")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    grey = np.round(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)
    whole = ArraySource(grey, np.asarray(digits.target, dtype=np.int64), tuple(map(str, range(10))), "embedded:digits")
    rest, test = stratified_split(whole.targets, whole.classes, _TEST_OF_ALL, _SPLIT_SEED)
    train, validation = stratified_split(
        whole.targets[rest], whole.classes, _VALIDATION_OF_ALL / (1 - _TEST_OF_ALL), _SPLIT_SEED
    )
    parts = {"train": rest[train], "validation": rest[validation], "test": test}
    copies = _copies(grey, parts["test"], np.concatenate([parts["train"], parts["validation"]]))
    description = (
        f"scikit-learn digits: {len(whole):,} real 8 x 8 images of handwriting in a fixed stratified split of "
        f"{' / '.join(f'{len(indices)} {part}' for part, indices in parts.items())}; "
        f"{copies or 'no'} test image{'s' if copies > 1 else ''} with an exact copy among the others"
    )
    return {part: SubsetSource(whole, indices) for part, indices in parts.items()}, description


def _copies(images: np.ndarray, these: np.ndarray, others: np.ndarray) -> int:
    known = {images[index].tobytes() for index in others}
    return sum(images[index].tobytes() in known for index in these)
