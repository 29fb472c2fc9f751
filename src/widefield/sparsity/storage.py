"""Sparse weights on disk: one bit for each element and the values that are not zero."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widefield._core.checks import check
from widefield._core.files import write_atomically
from widefield.sparsity.packing import pack_bits, packed_size, unpack_bits

FORMAT = "widefield-sparse-1"
_BITS, _VALUES = "/bits", "/values"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class StorageReport:
    """What a sparse file saves."""

    dense_bytes: int
    """Bytes of all tensors, each once."""

    sparse_bytes: int
    """Bytes of the file."""

    sparse_tensors: int
    """Tensors in sparse form: those that are smaller so."""

    tensors: int
    """Tensors in all."""

    @property
    def ratio(self) -> float:
        """Bytes of the file over those of the dense tensors."""
        return self.sparse_bytes / max(self.dense_bytes, 1)


def save_sparse(path: Path, tensors: Mapping[str, Tensor]) -> StorageReport:
    """Write a state dict to a safetensors file, each tensor in the form that is smaller, sparse or dense.

    Only zeros whose bits are all 0 are left out, so that every element comes back bit for bit, also -0.0 and NaN.

    Args:
        path: The file; an earlier one is replaced when the new one is complete.
        tensors: Of any type, device and memory format; a tensor under several names is stored once.

    Returns:
        Sizes.

    Raises:
        InputError: If a name ends as those of the parts of a sparse tensor do.
        OSError: If the disk refuses.
    """
    from safetensors.torch import save_file

    taken = [name for name in tensors if name.endswith((_BITS, _VALUES))]
    check(not taken, f"names without {_BITS!r} or {_VALUES!r} at the end", ", ".join(taken[:3]), "rename them")
    first: dict[tuple[Any, ...], str] = {}
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    aliases: dict[str, str] = {}
    dense_bytes = 0
    for name, tensor in tensors.items():
        source = first.setdefault(_identity(tensor), name)
        if source != name:
            aliases[name] = source
            continue
        plain = tensor.detach().cpu().contiguous()
        dense_bytes += plain.numel() * plain.element_size()
        kept = _kept(plain)
        if kept is None:
            stored[name] = plain.clone()
        else:
            shapes[name] = list(plain.shape)
            stored[name + _BITS], stored[name + _VALUES] = pack_bits(kept), plain[kept]
    header = {
        "format": FORMAT,
        "order": json.dumps(list(tensors)),
        "shapes": json.dumps(shapes),
        "aliases": json.dumps(aliases),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: save_file(stored, partial, header))
    return StorageReport(
        dense_bytes=dense_bytes,
        sparse_bytes=path.stat().st_size,
        sparse_tensors=len(shapes),
        tensors=len(tensors) - len(aliases),
    )


def load_sparse(path: Path) -> dict[str, Tensor]:
    """Read a file that `save_sparse` wrote, as the dense state dict in its order.

    Args:
        path: The file.

    Raises:
        InputError: If it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        header, stored, reason = {}, {}, str(error)
    else:
        reason = f"the format {header.get('format', 'of a plain file')}"
    check(header.get("format") == FORMAT, f"a file of format {FORMAT}", f"{path} ({reason})", "use save_sparse for it")
    found: dict[str, Tensor] = {}
    for name, shape in json.loads(header["shapes"]).items():
        values = stored.pop(name + _VALUES)
        found[name] = torch.zeros(shape, dtype=values.dtype)
        found[name][unpack_bits(stored.pop(name + _BITS), tuple(shape))] = values
    found |= stored
    found |= {name: found[source] for name, source in json.loads(header["aliases"]).items()}
    return {name: found[name] for name in json.loads(header["order"])}


def _kept(plain: Tensor) -> Tensor | None:
    """Return the elements to store, or none where that takes more bytes than all of them."""
    integer = _INTEGERS.get(plain.element_size())
    if integer is None or plain.dim() == 0 or plain.is_complex():
        return None
    kept = plain.view(integer) != 0
    sparse_bytes = packed_size(plain.numel()) + int(kept.sum()) * plain.element_size()
    return kept if sparse_bytes < plain.numel() * plain.element_size() else None


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.numel() == 0:
        return (id(tensor),)
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()
