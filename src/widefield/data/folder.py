"""Class folders of images, on disk or in an archive, with or without splits."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from widefield._core.checks import check, nearest
from widefield.data.archive import archive_stem, open_archive
from widefield.data.errors import UndecodableImageError
from widefield.data.image import decode_image, is_hidden, is_image_name, label_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from PIL import Image

_log = logging.getLogger(__name__)

SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""What a folder or archive of a split may be called, and the split that it is."""

_LAYOUT = (
    "train/ and val/ (each a folder, .zip or .tar) with one folder of images for each class, or such class folders"
)


class ImageTree(Protocol):
    """Names of folders and images below a root."""

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix`, sorted."""
        ...

    def images(self, prefix: str) -> list[str]:
        """Return the paths, from the root, of all images below `prefix`, sorted."""
        ...


class ImageStore(Protocol):
    """A place that holds files of images."""

    path: Path

    @property
    def tree(self) -> ImageTree:
        """Its folders and images."""
        ...

    def read(self, member: str) -> bytes:
        """Return the bytes of one of its images."""
        ...


class DiskTree:
    """Folders and images of a folder on disk; nothing is listed before it is asked for.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix`, sorted."""
        with os.scandir(self._root / prefix) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))

    def images(self, prefix: str) -> list[str]:
        """Return the paths, from the root, of all images below `prefix`, sorted."""
        found: list[str] = []
        walked: set[str] = set()
        for folder, names, files in os.walk(self._root / prefix, followlinks=True):
            real = os.path.realpath(folder)
            if real in walked:  # a link back to where we have been
                names.clear()
                continue
            walked.add(real)
            names[:] = [name for name in names if not is_hidden(name)]
            inside = Path(folder).relative_to(self._root)
            found.extend((inside / file).as_posix() for file in files if is_image_name(file) and not is_hidden(file))
        return sorted(found)


class DiskStore:
    """The images of a folder on disk.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = DiskTree(path)

    def read(self, member: str) -> bytes:
        """Return the bytes of one image."""
        return (self.path / member).read_bytes()


class FolderSource:
    """Images whose class is the folder they lie in.

    Args:
        store: Where the files are.
        members: Path of each image in the store.
        targets: Class index of each image.
        classes: Name of each class.
    """

    def __init__(self, store: ImageStore, members: list[str], targets: np.ndarray, classes: tuple[str, ...]) -> None:
        self._store = store
        self._members = members
        self.targets = targets
        self.classes = classes

    def __len__(self) -> int:
        return len(self._members)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Return image number `index` and its class index; see `ImageSource.load`."""
        name = self.name(index)
        # A damaged archive raises its own kinds of errors while a member is read (bad checksum, bad deflate stream).
        try:
            content = self._store.read(self._members[index])
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UndecodableImageError.of(name, reason) from error
        return decode_image(content, name), int(self.targets[index])

    def name(self, index: int) -> str:
        """Return the path of image number `index`; see `ImageSource.name`."""
        return f"{self._store.path.as_posix()}/{self._members[index]}"


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
