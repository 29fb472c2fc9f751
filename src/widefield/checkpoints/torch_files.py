"""PyTorch files, read without running code from them, and their archives compared with their checksums."""

from __future__ import annotations

import argparse
import pickle
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch.serialization import safe_globals

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield._core.memory import memory_bytes

_PROTOCOL = 3
"""Highest pickle protocol that torch reads without running code; it writes 2 by itself."""

_CHUNK_BYTES = 1 << 22
_RECORD = "data.pkl"


def _numpy_number(dtype: np.dtype[Any], content: object = None) -> object:
    """Make a NumPy number from its bytes, as its pickle asks for, and nothing that has a reference in it."""
    if dtype.hasobject or not isinstance(content, bytes):
        raise pickle.UnpicklingError(f"unsupported class: a NumPy number of type {dtype}")
    return np.frombuffer(content, dtype)[0]


_NUMBER_TYPES = ("?", "b", "h", "i", "l", "q", "B", "H", "I", "L", "Q", "e", "f", "d")

# What training scripts store beside the weights; none of it does anything when it is made.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_numpy_number, "numpy.core.multiarray.scalar"),
    (_numpy_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in _NUMBER_TYPES},
]

_REFUSALS = ("unsupported global", "unsupported class", "can only build")
"""What torch's unpickler says of objects that it does not make."""


def is_torch_file(path: Path) -> bool:
    """Whether a file is a zip archive or a pickle, as torch writes them, by its content."""
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with the length of its header and "{", and may have a zip archive at its end.
    return start[8:9] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80" or zipfile.is_zipfile(path))


def read_torch(path: Path) -> object:
    """Read what a PyTorch file holds: tensors, containers of them, and the harmless settings of training scripts.

    Args:
        path: A file for which `is_torch_file` holds.

    Raises:
        InputError: If it is truncated or damaged, an archive of another kind, or holds what could run code.
    """
    _check_protocol(path, _start_of_pickle(path))
    try:
        # An open file, since torch goes by the name of a path: one that ends in .safetensors is not unpickled.
        with path.open("rb") as file, safe_globals(_HARMLESS), warnings.catch_warnings():
            # Its warnings are about what is refused here in words of our own.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(reason in str(error).lower() for reason in _REFUSALS):
            _refuse_damaged(path, error)
        raise InputError(
            "a checkpoint that holds tensors alone",
            f"{path} with a pickled object, which could run code and was not loaded",
            "save the state dict alone, with model.state_dict(), or as safetensors",
        ) from None
    except MemoryError as error:
        _refuse_damaged(path, error)
    except Exception as error:
        # What the unpickler meets in a damaged file decides which exception it raises: nearly any.
        _refuse_damaged(path, error)


def _start_of_pickle(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(2)
    return _checked_archive(path) if start == b"PK" or zipfile.is_zipfile(path) else start


def _checked_archive(path: Path) -> bytes:
    """Compare the members of an archive with their checksums, which torch does not; return the start of the pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            record = _checked_record(path, [member.filename for member in members])
            claimed = sum(member.file_size for member in members)
            check(
                claimed <= memory_bytes(),
                f"a checkpoint that fits into the {memory_bytes() / 1e9:.0f} GB of memory of this machine",
                f"{path}, whose members claim {claimed / 1e9:,.0f} GB",
                "copy or download it again, or use a machine with more memory",
            )
            # torch can be told to leave the checksums out; they are all 0 then.
            for member in members if any(member.CRC for member in members) else ():
                with archive.open(member) as content:
                    while content.read(_CHUNK_BYTES):
                        pass
            start = archive.getinfo(record)
            start.CRC = cast("Any", None)  # It has been compared; without checksums there is nothing to compare.
            with archive.open(start) as content:
                return content.read(2)
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError) as error:
        _refuse_damaged(path, error)
    except (RuntimeError, OverflowError, NotImplementedError, AssertionError) as error:
        # Encrypted members, unknown compressions, numbers that no file has.
        _refuse_damaged(path, error)


def _checked_record(path: Path, names: list[str]) -> str:
    """Return the name of the pickle in an archive that has one and is nothing else."""
    folder = names[0].partition("/")[0] if names else ""
    fix = "write the state dict with torch.save(model.state_dict(), ...) or as safetensors where it was made"
    is_script = f"{folder}/constants.pkl" in names or any(name.startswith(f"{folder}/code/") for name in names)
    check(
        not is_script,
        "a checkpoint that holds tensors alone",
        f"{path}, a TorchScript archive, whose code was not run",
        f"load it with torch.jit.load where you trust it, and {fix.partition(' where')[0]}",
    )
    check(
        not names or not all(name.endswith(".npy") for name in names),
        "a checkpoint of PyTorch or safetensors",
        f"{path}, an archive of NumPy arrays",
        fix,
    )
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    check(
        not twice,
        "an archive with one member for each name",
        f"{path} with {', '.join(map(repr, twice[:3]))} twice",
        "copy or download it again",
    )
    check(
        f"{folder}/{_RECORD}" in names,
        "a complete PyTorch checkpoint",
        f"{path}, a zip archive without {_RECORD!r} (its first member is {names[0] if names else None!r})",
        "unpack it if the checkpoint is in it, or copy or download it again",
    )
    return f"{folder}/{_RECORD}"


def _check_protocol(path: Path, start: bytes) -> None:
    protocol = start[1] if len(start) == 2 and start[0] == 0x80 else 0
    check(
        protocol <= _PROTOCOL or protocol > pickle.HIGHEST_PROTOCOL,
        f"a pickle of protocol 2 or {_PROTOCOL}, which can be read without running code",
        f"{path} in protocol {protocol}",
        "load it where it was made, and save it with torch.save without pickle_protocol, or as safetensors",
    )


def _refuse_damaged(path: Path, error: BaseException) -> NoReturn:
    # torch's advice is to load such a file with its code.
    text = str(error).splitlines()
    advises = not text or any("weights_only" in line for line in text)
    reason = type(error).__name__ if advises else text[0]
    raise InputError(
        "a complete PyTorch checkpoint",
        f"{path}, which is truncated or damaged ({reason})",
        "copy or download it again",
    ) from None
