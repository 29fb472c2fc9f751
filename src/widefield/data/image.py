"""One image: what counts as one, decoding it, and turning every pixel format into RGB. The names of labels."""

from __future__ import annotations

import io
import json
import logging
import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.data.errors import IN_A_DATA_SET, UndecodableImageError

_log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Lower-case file extensions that count as images; anything else is passed over."""

MOST_PIXELS = 178_956_970
"""Pixels beyond which an image is taken for a decompression bomb: Pillow's own limit for an error."""

MOST_BYTES = 1 << 30
"""Size of an encoded image beyond which it is not read: more than so many pixels need without any compression."""

_ORIENTATION_TAG = 0x0112


def is_image_name(name: str) -> bool:
    """Return whether the extension of `name` is that of an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Return whether a file or folder called `name` (without its folders) is no part of a data set."""
    return name.startswith(".") or name == "__MACOSX"


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB.

    Args:
        path: The file.

    Returns:
        The image, upright and in mode RGB.

    Raises:
        UndecodableImageError: If the file is missing or is no image that can be decoded.
    """
    try:
        content = read_regular_file(Path(path))
    except (OSError, ValueError) as error:
        raise UndecodableImageError.of(str(path), getattr(error, "strerror", None) or str(error)) from error
    return decode_image(content, str(path))


def read_regular_file(path: Path) -> bytes:
    """Return the bytes of an ordinary file; see `open_regular_file` for what is none."""
    with open_regular_file(path) as file:
        return file.read(MOST_BYTES)


def open_regular_file(path: Path) -> BinaryIO:
    """Open an ordinary file to be read; of anything else not one byte is read, and opening it does not wait.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: If there is none, or it cannot be read.
        ValueError: If it is a folder, a named pipe, a device or a socket, or larger than `MOST_BYTES`.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = open(descriptor, "rb")  # noqa: SIM115 the caller closes it
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("no ordinary file, but a folder, a named pipe or a device")
        check_size(status.st_size)
    except ValueError:
        file.close()
        raise
    return file


def check_size(size_bytes: int) -> None:
    """Raise for an encoded image that claims to be larger than one can be.

    Raises:
        ValueError: If it is.
    """
    if size_bytes > MOST_BYTES:
        raise ValueError(f"{size_bytes:,} bytes, more than the {MOST_BYTES:,} that an image can have")


def decode_image(content: bytes, name: str, fix: str = IN_A_DATA_SET) -> Image.Image:
    """Decode an encoded image as RGB.

    Args:
        content: The bytes of the file.
        name: What to call it in the error.
        fix: What to do about an image that cannot be decoded, for the error.

    Returns:
        The image, upright and in mode RGB.

    Raises:
        UndecodableImageError: If it cannot be decoded, is truncated, or is too large to be an honest image.
    """
    # Damaged bytes make Pillow's decoders raise nearly every exception there is, not only OSError.
    try:
        with Image.open(io.BytesIO(content)) as image:
            # Before its pixels are unpacked; Pillow's own limit may have been lifted by another library.
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, which could be a decompression bomb")
            image.load()
            return to_rgb(_upright(image, name))
    except Image.UnidentifiedImageError as error:
        reason = "no known image format" if content else "the file is empty"
        raise UndecodableImageError.of(name, reason, fix) from error
    except Exception as error:
        raise UndecodableImageError.of(name, str(error) or type(error).__name__, fix) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any pixel format to RGB.

    Transparency is composited on white, 16-bit grey is scaled to 8 bits, palettes and CMYK are resolved.

    Args:
        image: A decoded image of any mode.

    Returns:
        The same picture in mode RGB.

    Raises:
        ValueError: If the values have no stated range (floating-point images).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("floating-point values without a stated range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layers = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, layers).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        if image.getexif().get(_ORIENTATION_TAG, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception as error:  # A broken EXIF block spoils the orientation, not the pixels.
        _log.debug("the EXIF block of %s is left aside: %s", name, error)
        return image


def label_names(path: str | Path) -> tuple[str, ...]:
    """Read the class names of a data set in the order of their labels.

    Args:
        path: A JSON file holding a list of names, or an object with such a list under "classes".

    Returns:
        The names; the label of a class is its place.

    Raises:
        InputError: If the file does not hold such a list, or a name is in it twice.
    """
    fix = 'write {"classes": ["first", "second", ...]}, or rename the file if it is about something else'
    try:
        content = json.loads(read_regular_file(Path(path)).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("a JSON list of class names", f"{str(path)!r}, which cannot be read ({error})", fix) from error
    names = content.get("classes") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("a JSON list of class names", f"{str(path)!r}, which holds something else", fix)
    twice = sorted({name for name in names if names.count(name) > 1})
    check(
        not twice, "each class name once", f"{', '.join(map(repr, twice))} twice in {str(path)!r}", "keep one of each"
    )
    return tuple(names)
