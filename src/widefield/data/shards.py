"""WebDataset shards, indexed once so that any sample can be read in any order."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield._core.extras import require
from widefield.data.archive import read_extent, tar_extents
from widefield.data.errors import UndecodableImageError
from widefield.data.folder import SPLIT_NAMES
from widefield.data.image import check_size, decode_image, is_image_name, label_names
from widefield.data.store import HEAD_BYTES, signature

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

_LABEL_FIELDS = ("label", "cls", "class", "target")
_INFO_NAMES = ("_info.json", "info.json")


@dataclass(frozen=True)
class _Sample:
    shard: int
    member: str
    offset: int
    size_bytes: int
    label: int | str


class ShardSource:
    """The samples of WebDataset shards, in their order.

    Args:
        shards: The tar files.
        samples: Where each image is, and its label.
        classes: Name of each class.
        targets: Class index of each sample.
    """

    def __init__(
        self, shards: Sequence[Path], samples: Sequence[_Sample], classes: tuple[str, ...], targets: np.ndarray
    ) -> None:
        self._shards = shards
        self._samples = samples
        self.classes = classes
        self.targets = targets

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return image number `index` and its class index; see `ImageSource.load`."""
        sample, name = self._samples[index], self.name(index)
        try:
            check_size(sample.size_bytes)
            content = read_extent(self._shards[sample.shard], sample.offset, sample.size_bytes)
        except (OSError, ValueError) as error:
            raise UndecodableImageError.of(name, getattr(error, "strerror", None) or str(error)) from error
        return decode_image(content, name), int(self.targets[index])

    def name(self, index: int) -> str:
        """Return the shard and member of image number `index`; see `ImageSource.name`."""
        sample = self._samples[index]
        return f"{self._shards[sample.shard].as_posix()}/{sample.member}"

    def member(self, index: int) -> str:
        """Return what names image number `index` within the set; see `LabelledSource.member`."""
        sample = self._samples[index]
        return f"{self._shards[sample.shard].name}/{sample.member}"

    def signature(self, index: int) -> str:
        """Return what tells image number `index` from another of its name; see `LabelledSource.signature`."""
        sample = self._samples[index]
        size = sample.size_bytes
        return signature(size, read_extent(self._shards[sample.shard], sample.offset, min(size, HEAD_BYTES)))


def shard_parts(location: str) -> dict[str, Callable[[], ShardSource]]:
    """Find the splits of a set of WebDataset shards.

    A sample is the members of a shard that share a path up to the first dot of the file name: an image, and its label
    as text in a `.cls` or as a field ("label", "cls", "class" or "target") of a `.json`. Class names are taken from
    `classes.json`, or a list under "classes" in `_info.json`, beside the shards; otherwise they are the numbers.

    Args:
        location: Shards with braces ("/data/{00..03}.tar"), one shard, several joined by "::", or a folder of shards.
            A shard called after its split ("val-00.tar") belongs to that split, any other to "train".

    Returns:
        What opens each split that is there.

    Raises:
        InputError: If the shards are not there or not local.
    """
    check(
        "://" not in location and not location.startswith("pipe:"),
        "WebDataset shards on a local disk",
        f"the address {location!r}",
        "download the shards and give their folder",
    )
    folder = Path(location).expanduser()
    if folder.is_dir():
        shards = sorted(folder.glob("*.tar"))
        check(bool(shards), "WebDataset shards (*.tar)", f"none in {location!r}", "give the folder that holds them")
    else:
        shards = [Path(shard).expanduser() for shard in _expanded(location)]
        missing = [str(shard) for shard in shards if not shard.is_file()]
        check(
            not missing,
            f"WebDataset shards at {location!r}",
            f"{len(missing)} of {len(shards)} missing, {missing[0] if missing else None!r} being the first",
            "correct the path or the range in braces",
        )
    by_split: dict[str, list[Path]] = {}
    for shard in shards:
        by_split.setdefault(_split_of(shard), []).append(shard)
    return {split: lambda paths=paths: _indexed(paths) for split, paths in by_split.items()}


def _expanded(location: str) -> list[str]:
    if "{" not in location and "::" not in location:
        return [location]
    return require("webdataset.shardlists", "wds", "ranges of WebDataset shards").expand_urls(location)


def _split_of(shard: Path) -> str:
    words = shard.stem.lower().replace("_", "-").split("-")
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


def _indexed(shards: Sequence[Path]) -> ShardSource:
    samples = [sample for number, shard in enumerate(shards) for sample in _samples(number, shard)]
    check(bool(samples), "images in the shards", f"none in {len(shards)} shards", "give shards of images")
    classes, targets = _classes([sample.label for sample in samples], shards[0].parent)
    check(len(classes) >= 2, "at least 2 classes", f"{len(classes)} in the shards", "give shards with further classes")
    return ShardSource(shards, samples, classes, targets)


def _samples(number: int, shard: Path) -> list[_Sample]:
    grouped: dict[str, dict[str, str]] = {}
    extents = tar_extents(shard)
    for member in extents:
        folder, slash, file = member.rpartition("/")
        stem, dot, extension = file.partition(".")
        if dot and stem:
            grouped.setdefault(f"{folder}{slash}{stem}", {})[extension.lower()] = member
    found: list[_Sample] = []
    for parts in grouped.values():
        image = next((member for extension, member in parts.items() if is_image_name(f"x.{extension}")), None)
        if image is None:
            continue
        sidecars = {
            extension: read_extent(shard, *extents[parts[extension]])
            for extension in ("cls", "json")
            if extension in parts
        }
        found.append(_Sample(number, image, *extents[image], _label(sidecars, f"{shard}/{image}")))
    return found


def _label(sidecars: dict[str, bytes], name: str) -> int | str:
    value: object = None
    try:
        if "cls" in sidecars:
            value = sidecars["cls"].decode().strip()
        elif "json" in sidecars:
            fields = json.loads(sidecars["json"])
            value = next((fields[field] for field in _LABEL_FIELDS if field in fields), None)
    except (ValueError, TypeError, RecursionError):
        value = None
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise InputError(
            "a label for every sample, in a .cls or in a .json",
            f"none for {name!r}",
            f"add it as text in the .cls or under {_LABEL_FIELDS[0]!r} in the .json",
        )
    return value


def _classes(labels: Sequence[int | str], folder: Path) -> tuple[tuple[str, ...], np.ndarray]:
    names = _names_beside(folder)
    numbers = [label for label in labels if isinstance(label, int)]
    check(
        len(numbers) in (0, len(labels)),
        "labels that are all numbers or all names",
        f"{len(numbers)} numbers and {len(labels) - len(numbers)} names in the shards",
        "write them in one way",
    )
    if numbers:
        highest = max(numbers)
        classes = names or tuple(map(str, range(highest + 1)))
        check(
            min(numbers) >= 0 and highest < len(classes),
            f"labels from 0 to {len(classes) - 1}, as many as there are class names",
            f"labels from {min(numbers)} to {highest}",
            "correct the labels or the list of class names beside the shards",
        )
        return classes, np.asarray(numbers)
    classes = names or tuple(sorted({str(label) for label in labels}))
    unknown = sorted({str(label) for label in labels} - set(classes))
    check(
        not unknown,
        "labels that are in the list of class names beside the shards",
        f"{', '.join(map(repr, unknown[:5]))}",
        "add them to the list",
    )
    place = {name: index for index, name in enumerate(classes)}
    return classes, np.asarray([place[str(label)] for label in labels])


def _names_beside(folder: Path) -> tuple[str, ...] | None:
    if (folder / "classes.json").is_file():
        return label_names(folder / "classes.json")
    for info in _INFO_NAMES:
        if (folder / info).is_file() and '"classes"' in (folder / info).read_text(encoding="utf-8"):
            return label_names(folder / info)
    return None
