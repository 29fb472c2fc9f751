"""Hugging Face data sets that are on this machine already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield._core.extras import require
from widefield.data.errors import UndecodableImageError
from widefield.data.folder import SPLIT_NAMES
from widefield.data.image import decode_image, read_image
from widefield.data.store import signature

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

_LABEL_COLUMNS = ("label", "labels", "target", "fine_label")


class HuggingFaceSource:
    """The rows of one split of a Hugging Face data set.

    Args:
        images: The data set, its image column left encoded.
        column: Name of the image column.
        targets: Class index of each row.
        classes: Name of each class.
        title: What to call the split in names of its images.
    """

    def __init__(self, images: Any, column: str, targets: np.ndarray, classes: tuple[str, ...], title: str) -> None:
        self._images = images
        self._column = column
        self._title = title
        self.targets = targets
        self.classes = classes

    def __len__(self) -> int:
        return len(self._images)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return image number `index` and its class index; see `ImageSource.load`."""
        cell = self._images[index][self._column]
        if cell is None:
            raise UndecodableImageError.of(self.name(index), "the cell is empty")
        target = int(self.targets[index])
        if cell["bytes"]:
            return decode_image(cell["bytes"], self.name(index)), target
        return read_image(cell["path"]), target

    def name(self, index: int) -> str:
        """Return the row of image number `index`; see `ImageSource.name`."""
        return f"{self._title}[{index}]"

    def member(self, index: int) -> str:
        """Return what names image number `index` within the set; see `LabelledSource.member`."""
        return str(index)

    def signature(self, index: int) -> str:
        """Return what tells image number `index` from another of its name; see `LabelledSource.signature`."""
        cell = self._images[index][self._column]
        return signature(len(cell["bytes"]), cell["bytes"]) if cell and cell["bytes"] else ""


def hugging_face_parts(location: str) -> dict[str, Callable[[], HuggingFaceSource]]:
    """Open a data set of the `datasets` library; nothing is downloaded, and no code of the data set is run.

    Args:
        location: A folder written by `save_to_disk`, a folder that `load_dataset` reads (parquet files, class folders),
            or the name of a data set that is in the local cache.

    Returns:
        What opens each of its splits.

    Raises:
        InputError: If it cannot be opened, or has no split for training, validation or test.
        MissingExtraError: If `datasets` is not installed.
    """
    check(
        "://" not in location,
        "a Hugging Face data set on this machine",
        f"the address {location!r}",
        "download it and give its folder",
    )
    datasets = require("datasets", "hf", "reading Hugging Face data sets")
    folder = Path(location).expanduser()
    saved = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    try:
        if saved:
            opened = datasets.load_from_disk(str(folder))
        else:
            opened = datasets.load_dataset(
                str(folder) if folder.exists() else location,
                download_config=datasets.DownloadConfig(local_files_only=True),
                # Refused by itself from version 4 on, a question on the terminal before.
                trust_remote_code=False,
            )
    except Exception as error:  # The library lets errors of all its file systems and formats through.
        raise InputError(
            "a Hugging Face data set on this machine",
            f"{location!r} ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            "give a folder written by save_to_disk, of parquet files or of class folders, or download it first",
        ) from error
    tables = opened if isinstance(opened, dict) else {"train": opened}
    found = {SPLIT_NAMES[name]: table for name, table in tables.items() if name in SPLIT_NAMES}
    check(
        bool(found),
        "a split called train, validation or test",
        f"{', '.join(map(repr, tables))} in {location!r}",
        "rename the splits",
    )
    return {
        split: lambda split=split, table=table: _source(datasets, table, f"hfds:{location} {split}")
        for split, table in found.items()
    }


def _source(datasets: Any, table: Any, title: str) -> HuggingFaceSource:
    features = table.features
    column = next((name for name, feature in features.items() if isinstance(feature, datasets.Image)), None)
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels += [name for name in _LABEL_COLUMNS if name in features and name not in labels]
    if column is None or not labels:
        raise InputError(
            "an image column and a label column",
            f"the columns {', '.join(map(repr, features))} in {title!r}",
            "cast them to datasets.Image and datasets.ClassLabel",
        )
    values = list(table[labels[0]])
    names = getattr(features[labels[0]], "names", None)
    if names is None and all(isinstance(value, str) for value in values):
        names = sorted(set(values))
        place = {name: index for index, name in enumerate(names)}
        values = [place[value] for value in values]
    check(
        all(isinstance(value, int) and value >= 0 for value in values),
        "one class index or name in each row",
        f"something else in the column {labels[0]!r} of {title!r}",
        "drop the rows without a label",
    )
    classes = tuple(names) if names is not None else tuple(map(str, range(max(values, default=-1) + 1)))
    check(len(classes) >= 2, "at least 2 classes", f"{len(classes)} in {title!r}", "give a set with further classes")
    images = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return HuggingFaceSource(images, column, np.asarray(values, dtype=np.int64), classes, title)
