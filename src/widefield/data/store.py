"""Where image files lie: a tree of names, and the bytes behind them."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Protocol

from widefield.data.image import is_hidden, is_image_name, open_regular_file, read_regular_file

HEAD_BYTES = 16384
"""Bytes of a file that its signature looks at."""


def signature(size_bytes: int, head: bytes) -> str:
    """Return a file's size and a checksum of its first `HEAD_BYTES`, as text."""
    return f"{size_bytes}:{zlib.crc32(head[:HEAD_BYTES]):08x}"


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

    def signature(self, member: str) -> str:
        """Return size and checksum of one of its images, the checksum of the first `HEAD_BYTES` or of all."""
        ...


class DiskTree:
    """Folders and images of a folder on disk; nothing is listed before it is asked for.

    Symbolic links are followed, also out of the folder, since data sets are often linked together; one that leads back
    to a folder it lies in is left out.

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
        above: dict[str, tuple[str, ...]] = {}
        for folder, names, files in os.walk(self._root / prefix, followlinks=True):
            real = os.path.realpath(folder)
            around = above.get(os.path.dirname(folder), ())
            if real in around:  # a link back to a folder that it lies in
                names.clear()
                continue
            above[folder] = (*around, real)
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
        """Return the bytes of one image; see `read_regular_file` for what is none."""
        return read_regular_file(self.path / member)

    def signature(self, member: str) -> str:
        """Return the size of one image and a checksum of its first bytes."""
        with open_regular_file(self.path / member) as file:
            return signature(os.fstat(file.fileno()).st_size, file.read(HEAD_BYTES))
