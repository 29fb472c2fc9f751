"""Files that are either complete or not there: written beside their place, flushed, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, and rename it to `path`.

    A crash at any moment leaves the earlier file, or none; a failure removes what was written.

    Args:
        path: Where the file shall be.
        write: Writes the whole file to the path it is given.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` in UTF-8 as `write_atomically` does."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
