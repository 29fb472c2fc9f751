"""Files that are either complete or not there: written beside their place, flushed, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"
"""Ending of names, hidden by a leading dot, that are still being written; leftovers of a kill may be removed."""


def sync_to_disk(path: Path) -> None:
    """Wait until the file or folder `path` has reached the disk."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, and rename it to `path`.

    A crash at any moment leaves the earlier file, or none; a failure removes what was written.

    Args:
        path: Where the file shall be.
        write: Writes the whole file to the path it is given.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        write(partial)
        sync_to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_to_disk(path.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` in UTF-8, line ends as they are, as `write_atomically` does."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8", newline=""))
