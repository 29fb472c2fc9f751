from __future__ import annotations

import io
import tarfile
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def encoded(seed: int, kind: str = "PNG") -> bytes:
    """Return a small image whose pixels depend on `seed`."""
    pixels = np.random.RandomState(seed).randint(0, 256, (10, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def image_bytes() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def write_tree(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes `{path: content or seed of an image}` below a folder and returns the folder."""

    def write(name: str, members: dict[str, bytes | int]) -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        for member, content in members.items():
            path = root / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(content) if isinstance(content, int) else content)
        return root

    return write


@pytest.fixture
def write_zip(tmp_path: Path) -> Callable[..., Path]:
    """Return a function like `write_tree` that packs a .zip."""

    def write(name: str, members: dict[str, bytes | int]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, encoded(content) if isinstance(content, int) else content)
        return path

    return write


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[..., Path]:
    """Return a function like `write_tree` that packs a .tar."""

    def write(name: str, members: dict[str, bytes | int], mode: str = "w") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
            for member, content in members.items():
                data = encoded(content) if isinstance(content, int) else content
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def two_classes() -> dict[str, bytes | int]:
    """Five images in each of two class folders."""
    return {
        f"{name}/{number}.png": 10 * place + number for place, name in enumerate(("cat", "dog")) for number in range(5)
    }
