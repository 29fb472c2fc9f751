"""What a file is by its content, where it is no checkpoint: said before anything tries to read it as one."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import NoReturn

from widefield._core.checks import check
from widefield._core.errors import InputError

_UNPACK = "unpack it and name the file in it"
_EXPORT = "write the state dict with torch.save or as safetensors where it was made"

# How a file starts, what that is, and what to do about it.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x93NUMPY", "a NumPy array", _EXPORT),
    (b"\x89HDF", "an HDF5 file, as Keras writes it", _EXPORT),
    (b"GGUF", "a GGUF file", _EXPORT),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file", "fetch the file itself with git lfs pull"),
)
_TAR_MAGIC, _TAR_PLACE = b"ustar", 257
_TABLE_MAGIC = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_TFLITE_MAGIC, _TFLITE_PLACE = b"TFL3", 4
_LONGEST_JSON = 50_000_000

_OBJECTS: dict[int, str] = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_is_file(path: Path) -> None:
    """Raise unless a path leads to an ordinary file: opening a named pipe would wait for ever.

    Raises:
        InputError: If there is none, or something else.
    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError) as error:
        reason = "" if isinstance(error, FileNotFoundError) else f" ({getattr(error, 'strerror', None) or error})"
        raise InputError("a checkpoint file", f"no file at {path}{reason}", "check the path") from error
    there = _OBJECTS.get(kind, "something else")
    fix = "name the file in it" if kind == stat.S_IFDIR else "copy what it gives into a file"
    check(kind == stat.S_IFREG, "a checkpoint file", f"{there} at {path}", fix)


def refuse_other(path: Path, reason: str) -> NoReturn:
    """Raise for a file that is no checkpoint or not a whole one.

    Args:
        path: The file.
        reason: What whoever tried to read it said, for a file of no known kind.

    Raises:
        InputError: Always; with what the file is, where its content tells.
    """
    what, fix = _foreign_kind(path) or (reason, "copy or download it again")
    raise InputError(
        "a complete safetensors or PyTorch checkpoint",
        f"{path}, which is truncated or of another kind ({what})",
        fix,
    )


def _foreign_kind(path: Path) -> tuple[str, str] | None:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(max(size_bytes - len(_TABLE_MAGIC), 0))
        end = file.read()
    for magic, what, fix in _STARTS:
        if start.startswith(magic):
            return what, fix
    if start[_TAR_PLACE:].startswith(_TAR_MAGIC):
        return "a tar archive", _UNPACK
    if end == _TABLE_MAGIC or ".data-00000-of-" in path.name or path.name == "saved_model.pb":
        return "a part of a TensorFlow checkpoint", _EXPORT
    if start[_TFLITE_PLACE:].startswith(_TFLITE_MAGIC):
        return "a TensorFlow Lite model", _EXPORT
    if path.suffix == ".onnx":
        return "an ONNX model", _EXPORT
    return _kind_of_text(path, start, size_bytes)


def _kind_of_text(path: Path, start: bytes, size_bytes: int) -> tuple[str, str] | None:
    text = start.decode("utf-8", errors="ignore").lstrip("\ufeff \t\r\n")
    if not text or sum(not (character.isprintable() or character in "\t\r\n") for character in text):
        return None
    if text.startswith("<"):
        return "a web page or XML in place of the file", "download the file itself, logged in where that is needed"
    if text.startswith(("{", "[")) and size_bytes <= _LONGEST_JSON:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return "text that starts like JSON", "name the file of the weights"
        if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
            parts = sorted({str(part) for part in content["weight_map"].values()})
            told = f"the index of weights that lie in {len(parts)} files, the first {parts[0] if parts else ''!r}"
            return told, "read these files with safetensors and write them as one"
        return "JSON", "name the file of the weights"
    return f"text, {text.splitlines()[0][:60]!r}", "name the file of the weights"
