"""safetensors files: written atomically with a checksum of what they hold, read with a look at their header."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from widefield._core.checks import check
from widefield._core.files import write_atomically
from widefield.checkpoints.kinds import refuse_other
from widefield.checkpoints.tensors import check_readable, check_unshared

CHECKSUM = "widefield-sha256"
"""Key of the header under which the checksum lies."""

_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 100_000_000


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors; a crash leaves the earlier file or none.

    The header gets a checksum of names, types, shapes, values and metadata, which `read_weights` compares. Equal
    contents give equal files.

    Args:
        path: Where to.
        tensors: Names to tensors; moved to the CPU and made contiguous.
        metadata: Strings for the header of the file.

    Raises:
        InputError: If two names share memory, or a tensor is of a type that weights do not have.
    """
    # A view of one element on many places is written out in full.
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    check_readable(flat, f"what is to be written to {path}")
    check_unshared(flat, f"what is to be written to {path}")
    strings = dict(metadata or {})
    strings[CHECKSUM] = _checksum(flat, strings)

    def write(partial: Path) -> None:
        save_file(flat, partial, metadata=strings)
        _order_header(partial)

    write_atomically(path, write)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file and the strings of its header, the checksum apart.

    Args:
        path: The file.

    Raises:
        InputError: If it is truncated, damaged or of another kind, has a name twice, or holds something else than its
            checksum says.
    """
    _check_names(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        refuse_other(path, (str(error).splitlines() or [type(error).__name__])[0])
    stated = metadata.pop(CHECKSUM, None)
    check(
        stated is None or stated == _checksum(tensors, metadata),
        "a checkpoint as it was written",
        f"{path}, whose content differs from its checksum",
        f"copy or download it again, or drop {CHECKSUM!r} from its header if the change was meant",
    )
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(cast("Any", tensor.reshape(-1).view(uint8).numpy()))
    return digest.hexdigest()


def _header(path: Path) -> tuple[int, bytes]:
    """Return how long the header is said to be, and what there is of it."""
    with path.open("rb") as file:
        start = file.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        return length, file.read(length) if length <= _LONGEST_HEADER else b""


def _check_names(path: Path) -> None:
    """Raise if a name is in the header twice: readers differ in which of the two they take."""
    twice: list[str] = []

    def collected(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(sorted({name for name in names if names.count(name) > 1}))
        return found

    try:
        json.loads(_header(path)[1], object_pairs_hook=collected)
    except (ValueError, RecursionError) as error:
        refuse_other(path, f"its header cannot be read: {error}")
    check(
        not twice,
        "a checkpoint with one tensor for each name",
        f"{path} with {', '.join(map(repr, twice[:3]))} twice in its header",
        "write it again with safetensors",
    )


def _order_header(path: Path) -> None:
    """Sort the strings of the header, which safetensors writes in an order that changes from process to process."""
    length, header = _header(path)
    content = json.loads(header)
    content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
    ordered = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    if len(ordered) <= length:
        with path.open("r+b") as file:
            file.seek(_LENGTH.size)
            file.write(ordered.ljust(length))
