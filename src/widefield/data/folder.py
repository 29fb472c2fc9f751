"""Class folders of images, on disk or in an archive, with or without splits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from widefield._core.checks import check, nearest
from widefield.data.archive import archive_stem, open_archive
from widefield.data.errors import IN_A_DATA_SET
from widefield.data.image import label_names
from widefield.data.photos import Photos
from widefield.data.store import DiskStore, ImageStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from PIL import Image

_log = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""What a folder or archive of a split may be called, and the split that it is."""

_LAYOUT = (
    "train/ and val/ (each a folder, .zip or .tar) with one folder of images for each class, or such class folders"
)


class FolderSource:
    """Images whose class is the folder they lie in.

    Args:
        store: Where the files are.
        members: Path of each image in the store.
        targets: Class index of each image.
        classes: Name of each class.
    """

    def __init__(self, store: ImageStore, members: list[str], targets: np.ndarray, classes: tuple[str, ...]) -> None:
        self._photos = Photos(store, members, IN_A_DATA_SET)
        self.targets = targets
        self.classes = classes

    def __len__(self) -> int:
        return len(self._photos)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return image number `index` and its class index; see `ImageSource.load`."""
        return self._photos.load(index), int(self.targets[index])

    def name(self, index: int) -> str:
        """Return the path of image number `index`; see `ImageSource.name`."""
        return self._photos.name(index)

    def member(self, index: int) -> str:
        """Return what names image number `index` within the set; see `LabelledSource.member`."""
        return self._photos.members[index]

    def signature(self, index: int) -> str:
        """Return what tells image number `index` from another of its name; see `LabelledSource.signature`."""
        return self._photos.signature(index)


def folder_parts(root: Path) -> dict[str, Callable[[], FolderSource]]:
    """Find the splits below a path.

    Args:
        root: A folder, a .zip or a .tar, with a folder or archive for each split, or with the class folders themselves.

    Returns:
        What opens each split that is there; the class folders themselves count as "train".

    Raises:
        InputError: If nothing is there, or no layout that is known.
    """
    check(root.exists(), "an existing folder or archive", f"{str(root)!r}, which does not exist", _near(root))
    if not root.is_dir():
        return _parts_within(open_archive(root), None)
    order = root / "classes.json"
    names = label_names(order) if order.is_file() else None
    archives = sorted(
        entry for entry in root.iterdir() if entry.is_file() and (archive_stem(entry.name) or "").lower() in SPLIT_NAMES
    )
    store = DiskStore(root)
    if not archives:
        return _parts_within(store, names)
    folders = [root / name for name in store.tree.folders("") if name.lower() in SPLIT_NAMES]
    places = {
        split: [entry for entry in [*folders, *archives] if _split_of(entry) == split]
        for split in dict.fromkeys(SPLIT_NAMES.values())
    }
    for split, entries in places.items():
        check(
            len(entries) <= 1,
            f"one {split} split in {str(root)!r}",
            " and ".join(repr(entry.name) for entry in entries),
            "keep one of them there",
        )
    return {split: _opener(entries[0], names) for split, entries in places.items() if entries}


def _split_of(entry: Path) -> str:
    stem = entry.name if entry.is_dir() else archive_stem(entry.name) or ""
    return SPLIT_NAMES[stem.lower()]


def _opener(place: Path, names: tuple[str, ...] | None) -> Callable[[], FolderSource]:
    def opened() -> FolderSource:
        store = DiskStore(place) if place.is_dir() else open_archive(place)
        return _class_folders(store, _top_folder(store), names)

    return opened


def _parts_within(store: ImageStore, names: tuple[str, ...] | None) -> dict[str, Callable[[], FolderSource]]:
    prefix = ""
    splits = _split_folders(store.tree.folders(prefix))
    if not splits:
        prefix = _top_folder(store)
        splits = _split_folders(store.tree.folders(prefix))
    if not splits:
        return {"train": lambda: _class_folders(store, prefix, names)}
    return {
        split: lambda folder=folder: _class_folders(store, "/".join(filter(None, (prefix, folder))), names)
        for split, folder in splits.items()
    }


def _split_folders(folders: list[str]) -> dict[str, str]:
    """Return the folder of each split, or nothing where the folders are classes, one of which may be "train"."""
    found = {folder: SPLIT_NAMES[folder.lower()] for folder in folders if folder.lower() in SPLIT_NAMES}
    both = "train" in found.values() and len(set(found.values())) > 1
    if not both and len(found) < len(folders):
        return {}
    for split in set(found.values()):
        same = [folder for folder, other in found.items() if other == split]
        check(len(same) == 1, f"one {split} folder", " and ".join(map(repr, same)), "keep one of them there")
    return {split: folder for folder, split in found.items()}


def _top_folder(store: ImageStore) -> str:
    """Return the single folder that packing a folder leaves at the top of an archive, if it holds only folders."""
    folders = store.tree.folders("")
    if isinstance(store, DiskStore) or len(folders) != 1:
        return ""
    images = store.tree.images("")
    return folders[0] if images and all(member.count("/") > 1 for member in images) else ""


def _class_folders(store: ImageStore, prefix: str, names: tuple[str, ...] | None) -> FolderSource:
    place = "/".join(filter(None, (store.path.as_posix(), prefix)))
    folders = store.tree.folders(prefix)
    images = store.tree.images(prefix)
    skip = len(prefix) + 1 if prefix else 0
    check(bool(images), _LAYOUT, f"no image in {place!r}", "give the folder or archive that holds the images")
    by_class: dict[str, list[str]] = {folder: [] for folder in folders}
    loose = 0
    for member in images:
        folder, slash, _ = member[skip:].partition("/")
        if slash:
            by_class[folder].append(member)
        else:
            loose += 1
    check(
        loose < len(images),
        _LAYOUT,
        f"{len(images)} image{'s' if len(images) > 1 else ''} and no class folder in {place!r}",
        "move the images of each class into a folder named after it",
    )
    if loose:
        _log.warning("%d images directly in %s belong to no class and are left out", loose, place)
    empty = [folder for folder, members in by_class.items() if not members]
    check(
        not empty,
        "images in every class folder",
        f"none in {listed(empty)} of {place!r}",
        "add images, or remove the folder",
    )
    classes = _ordered(by_class, names, place)
    check(
        len(classes) >= 2,
        "at least 2 classes",
        f"{len(classes)} ({listed(classes)}) in {place!r}",
        "add a folder of images for each further class",
    )
    members = [member for name in classes for member in by_class[name]]
    targets = np.repeat(np.arange(len(classes)), [len(by_class[name]) for name in classes])
    return FolderSource(store, members, targets, classes)


def _ordered(folders: Iterable[str], names: tuple[str, ...] | None, place: str) -> tuple[str, ...]:
    if names is None:
        return tuple(sorted(folders))
    odd = sorted(set(folders) ^ set(names))
    check(
        not odd,
        "the same classes in classes.json and in the folders",
        f"{listed(odd)} in one of them only ({place!r})",
        "correct classes.json, or remove it to have the classes in alphabetical order",
    )
    return names


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Return quoted names for a message, the first `limit` of them."""
    shown = [repr(name) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def _near(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        while not parent.exists():
            parent = parent.parent
        return f"correct the path, which exists as far as {str(parent)!r}"
    close = nearest(path.name, [entry.name for entry in parent.iterdir()], count=1)
    return f"did you mean {str(parent / close[0])!r}" if close else "correct the path"
