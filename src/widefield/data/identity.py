"""Which images a run has: classes, counts and a hash of names and labels, wherever the images lie.

Covered is what is known without reading images: the names of the classes, and for each part the name of every image
below the root, its label and its place in the order. Beside them, of up to 1,000 images spread over each part, the size
of the file and a checksum of its first 16 KB (of all of it in a zip), so that a small set is covered whole, and folders
that have exchanged their names are found in a large one. Images of embedded, torchvision's and Hugging Face sets have
their row in place of a name.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from widefield._core.files import write_atomically
from widefield.data.folder import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from widefield.data.source import LabelledSource, Splits

_BLOCK = 65536
_LOOKED_INTO = 1000
_COLUMNS = ("part", "class", "image")


@dataclass(frozen=True, kw_only=True)
class PartIdentity:
    """The images of one part."""

    images: int
    sha256: str
    """Of their labels and names, in their order."""
    contents_sha256: str
    """Of the signatures of their files, evenly spread where there are many."""


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """The images of all parts."""

    classes: tuple[str, ...]
    """In the order of their indices."""
    train: PartIdentity
    validation: PartIdentity | None
    test: PartIdentity | None

    def differences(self, known: DataIdentity, names: Mapping[str, list[str]], splits: Splits) -> list[str]:
        """Tell what has changed since an earlier look; nothing if the identities are equal.

        Args:
            known: The earlier identity.
            names: What `read_images` gave for its list of images, where there is one.
            splits: What this identity is of.
        """
        found: list[str] = []
        gone = [name for name in known.classes if name not in set(self.classes)]
        new = [name for name in self.classes if name not in set(known.classes)]
        if new or gone:
            found.append(_new_and_gone("class", "classes", new, gone))
        elif self.classes != known.classes:
            moved = next(name for name, before in zip(self.classes, known.classes, strict=True) if name != before)
            place = self.classes.index(moved)
            found.append(f"the classes in another order ({moved!r} in the place of {known.classes[place]!r})")
        changed = [part for part in splits.parts() if getattr(self, part) != getattr(known, part)]
        for part in changed:
            now, before = (0 if of is None else of.images for of in (getattr(self, part), getattr(known, part)))
            if now != before:
                found.append(f"{now:,} {part} images in place of {before:,}")
        # With a class renamed every image in it has another name: the class says it.
        if names and not new and not gone:
            found += _changed_names(splits, names)
        if changed and not found:
            part = changed[0]
            same = getattr(self, part).sha256 == getattr(known, part).sha256
            found.append(
                f"{part} images with other contents under the same names"
                if same
                else f"other {part} images, or another order of them"
            )
        return found


def identify(splits: Splits) -> DataIdentity:
    """Return the identity of the images of all parts, without reading one."""
    parts = {
        part: None
        if source is None
        else PartIdentity(images=len(source), sha256=_sha256(source), contents_sha256=_contents_sha256(source))
        for part, source in splits.parts().items()
    }
    train = parts["train"]
    assert train is not None
    return DataIdentity(
        classes=tuple(splits.train.classes), train=train, validation=parts["validation"], test=parts["test"]
    )


def write_images(path: Path, splits: Splits) -> None:
    """Write part, class and name of every image as a gzipped CSV file, atomically."""

    def write(partial: Path) -> None:
        with (
            partial.open("wb") as file,
            gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
            io.TextIOWrapper(packed, encoding="utf-8", errors="surrogatepass", newline="") as text,
        ):
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(_COLUMNS)
            for part, source in splits.parts().items():
                if source is not None:
                    classes, targets = source.classes, np.asarray(source.targets).tolist()
                    rows.writerows((part, classes[targets[i]], source.member(i)) for i in range(len(source)))

    write_atomically(path, write)


def read_images(path: Path) -> dict[str, list[str]]:
    """Return the names of the images of each part that `write_images` wrote; nothing if the file cannot be read."""
    names: dict[str, list[str]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass", newline="") as text:
            for row in csv.DictReader(text):
                names.setdefault(row["part"], []).append(row["image"])
    except (OSError, EOFError, ValueError, KeyError, csv.Error):
        return {}
    return names


def _sha256(source: LabelledSource) -> str:
    digest = hashlib.sha256(np.asarray(source.targets, dtype="<i8").tobytes())
    for start in range(0, len(source), _BLOCK):
        block = range(start, min(start + _BLOCK, len(source)))
        names = "".join(f"{source.member(index)}\0" for index in block)
        digest.update(names.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _contents_sha256(source: LabelledSource) -> str:
    count = min(len(source), _LOOKED_INTO)
    drawn = np.linspace(0, len(source) - 1, count).round().astype(np.int64).tolist()
    return hashlib.sha256(",".join(map(source.signature, drawn)).encode()).hexdigest()


def _changed_names(splits: Splits, known: Mapping[str, list[str]]) -> list[str]:
    now = {
        part: [source.member(index) for index in range(len(source))]
        for part, source in splits.parts().items()
        if source is not None
    }
    # Over all parts: where a part is drawn, one image more or less moves others from one to another.
    before, after = ({name for part in parts.values() for name in part} for parts in (known, now))
    new = sorted(after - before)
    gone = sorted(before - after)
    if new or gone:
        return [_new_and_gone("image", "images", new, gone)]
    for part, members in now.items():
        moved = next((name for name, other in zip(members, known.get(part, []), strict=False) if name != other), None)
        if moved is not None:
            return [f"the {part} images others, or in another order, from {moved!r} on"]
    return []


def _new_and_gone(one: str, many: str, new: list[str], gone: list[str]) -> str:
    return " and ".join(
        f"the {one if len(names) == 1 else many} {listed(names, 3)} {what}"
        for names, what in ((new, "new"), (gone, "gone"))
        if names
    )
