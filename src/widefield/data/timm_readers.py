"""torchvision's data sets on disk, opened through timm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from widefield._core.checks import check, check_name
from widefield._core.errors import InputError
from widefield.data.image import to_rgb

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

_NAMES = ("cifar10", "cifar100")


class TorchvisionSource:
    """The images of a torchvision data set.

    Args:
        dataset: One with `classes` and `targets` that yields a PIL image and a class index.
        title: What to call the set in names of its images.
    """

    def __init__(self, dataset: Any, title: str) -> None:
        self._dataset = dataset
        self._title = title
        self.classes: tuple[str, ...] = tuple(dataset.classes)
        self.targets = np.asarray(dataset.targets)

    def __len__(self) -> int:
        return len(self._dataset)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return image number `index` and its class index; see `ImageSource.load`."""
        image, target = self._dataset[index]
        return to_rgb(image), int(target)

    def name(self, index: int) -> str:
        """Return the name of image number `index`; see `ImageSource.name`."""
        return f"{self._title}[{index}]"

    def member(self, index: int) -> str:
        """Return what names image number `index` within the set; see `LabelledSource.member`."""
        return str(index)

    def signature(self, index: int) -> str:
        """Return what tells image number `index` from another of its name; see `LabelledSource.signature`."""
        return ""


def torchvision_parts(location: str) -> dict[str, Callable[[], TorchvisionSource]]:
    """Open a data set in torchvision's own format; nothing is downloaded.

    torchvision compares the files with their published checksums before it reads them.

    Args:
        location: Name and folder, such as "cifar10:/data" for /data/cifar-10-batches-py.

    Returns:
        What opens its parts "train" and "test" (it has no validation split of its own).

    Raises:
        InputError: If the name is unknown, or the files are not there.
    """
    name, _, folder = location.partition(":")
    check_name(name, _NAMES, "torchvision data set")
    check(
        bool(folder),
        f"a folder in 'torch/{name}:/folder'",
        f"{'torch/' + location!r}",
        "add the folder that holds the files",
    )
    return {split: lambda split=split: _opened(name, Path(folder).expanduser(), split) for split in ("train", "test")}


def _opened(name: str, folder: Path, split: str) -> TorchvisionSource:
    from timm.data import create_dataset

    try:
        dataset = create_dataset(f"torch/{name}", root=str(folder), split=split, download=False)
    except RuntimeError as error:
        raise InputError(
            f"the complete files of torch/{name}",
            f"{str(folder)!r}, where they are missing or differ from the published ones",
            "give the folder into which torchvision downloaded them",
        ) from error
    return TorchvisionSource(dataset, f"torch/{name}:{folder.as_posix()} {split}")
