"""Where measurements of this machine are kept between processes."""

from __future__ import annotations

import os
import re
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of widefield's cache files, which may not exist: below XDG_CACHE_HOME, or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "widefield"


def slug(text: str) -> str:
    """Return a name of a device or version as part of a file name: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()
