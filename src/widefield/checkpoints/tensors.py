"""What the tensors of a checkpoint must be: of types that weights have, each with its own memory, finite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from widefield._core.checks import check

_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)

_MOST = 3
_NON_NEGATIVE = "running_var"


def check_readable(tensors: Mapping[Any, Tensor], source: str) -> None:
    """Raise unless these are names and dense tensors of types that weights, buffers and masks have.

    Two names may stand for the same memory, see `check_unshared`.

    Args:
        tensors: The state dict.
        source: Where it comes from, for the message.

    Raises:
        InputError: With the names of what is not a name, of another type, or has elements that share memory.
    """
    odd = [repr(name) for name in tensors if not isinstance(name, str)]
    check(not odd, "a state dict whose keys are names", f"{source} with {_told(odd)}", "save model.state_dict()")
    kinds = {name: kind for name, tensor in tensors.items() if (kind := _odd_kind(tensor)) is not None}
    check(
        not kinds,
        "dense tensors of float16, bfloat16, float32, float64, integers or bool",
        f"{source} with {_told([f'{name!r} of {kind}' for name, kind in kinds.items()])}",
        "write them in one of these types, as model.state_dict() has them",
    )
    folded = [repr(name) for name, tensor in tensors.items() if _reach(tensor) is None]
    check(
        not folded,
        "tensors whose elements have memory of their own",
        f"{source} with {_told(folded)}",
        "save {name: tensor.contiguous() for each}",
    )


def check_unshared(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise if two names stand for the same memory, wholly or in part.

    Raises:
        InputError: With the names.
    """
    shared = [" and ".join(map(repr, names)) for names in _overlapping(tensors)]
    check(
        not shared,
        "tensors that have memory of their own",
        f"{source} (Some tensors share memory: {_told(shared)})",
        "save {name: tensor.clone() for each}, if they are meant to be equal",
    )


def check_types(own: Mapping[str, Tensor], state: Mapping[str, Tensor], names: Mapping[str, str], source: str) -> None:
    """Raise unless what is floating in a network is floating in a state dict, and what counts there counts here.

    Counters of a floating type, as casting a whole state dict leaves them, are taken while they hold whole numbers.

    Args:
        own: The network's state dict.
        state: Tensors under the network's names; those of other names are passed over.
        names: The network's names to those of the file, for the message.
        source: Where the state dict comes from, for the message.

    Raises:
        InputError: With the names and types.
    """
    odd = [
        f"{names.get(name, name)!r} of {_name(state[name].dtype)} where {_name(tensor.dtype)} is expected"
        for name, tensor in own.items()
        if name in state and not _fits(state[name], tensor)
    ]
    check(
        not odd,
        "weights of the types that the network has",
        f"{source} with {_told(odd)}",
        "convert them back to numbers of that kind, or use the file they were made from",
    )


def check_values(
    state: Mapping[str, Tensor], names: Mapping[str, str], source: str, like: Mapping[str, Tensor] | None = None
) -> None:
    """Raise unless all weights are finite and no variance is negative.

    Args:
        state: Tensors under the network's names.
        names: The network's names to those of the file, for the message.
        source: Where the state dict comes from, for the message.
        like: The tensors of the network into which the values are going to be copied, where these may be of a narrower
            type.

    Raises:
        InputError: With the names of the tensors that hold something else.
    """
    odd: list[str] = []
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        taken = tensor if like is None or name not in like else _narrowed(tensor, like[name].dtype)
        if not _is_finite(taken):
            odd.append(f"{names.get(name, name)!r}, which holds {_worst(taken)}")
        elif name.endswith(_NON_NEGATIVE) and bool((taken < 0).any()):
            odd.append(f"{names.get(name, name)!r}, which holds negative variances")
    check(
        not odd,
        "weights that are finite numbers",
        f"{source} with {_told(odd)}",
        "use a checkpoint from before they went wrong, or copy it again",
    )


def _fits(tensor: Tensor, own: Tensor) -> bool:
    if own.is_floating_point() or not tensor.is_floating_point():
        return own.is_floating_point() == tensor.is_floating_point()
    return tensor.is_meta or bool((tensor == tensor.round()).all())


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    is_narrower = dtype.is_floating_point and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    return tensor.to(dtype) if is_narrower else tensor


def _is_finite(tensor: Tensor) -> bool:
    # A sum is one pass without a copy, and is finite only where every term is; the other way it may overflow.
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return math.isfinite(tensor.sum(dtype=wide).item()) or bool(torch.isfinite(tensor).all())


def _worst(tensor: Tensor) -> str:
    return "NaN" if bool(tensor.isnan().any()) else "infinity"


def _odd_kind(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return "a quantized type"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"layout {str(tensor.layout).removeprefix('torch.')}"
    if tensor.dtype not in (*_FLOATING, *_INTEGER):
        return _name(tensor.dtype)
    return None


def _reach(tensor: Tensor) -> int | None:
    """How many places from its first to its last element, or none if two of them may be at the same."""
    steps = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    reach = 1
    for stride, size in steps if tensor.numel() else ():
        # Dense in some order of its axes: each step is as long as what the shorter ones reach, or longer.
        if stride < reach:
            return None
        reach += stride * (size - 1)
    return reach


def _overlapping(tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Pairs of names of tensors that overlap."""
    found: list[tuple[str, ...]] = []
    storages: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in tensors.items():
        reach = _reach(tensor)
        if tensor.numel() and not tensor.is_meta and reach is not None:
            first = tensor.storage_offset() * tensor.element_size()
            span = (int(first), int(first + reach * tensor.element_size()), name)
            storages.setdefault(tensor.untyped_storage().data_ptr(), []).append(span)
    for spans in storages.values():
        spans.sort()
        ends = itertools.accumulate((end for _, end, _ in spans), max)
        if any(span[0] < end for span, end in zip(spans[1:], ends, strict=False)):
            found += _sharing([name for _, _, name in spans], tensors)
    return found


def _sharing(names: Sequence[str], tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Pairs among the tensors of one storage that have a byte in common; interleaved ones have none."""
    owner = torch.full((tensors[names[0]].untyped_storage().nbytes(),), -1, dtype=torch.int32)
    found: list[tuple[str, ...]] = []
    for index, name in enumerate(names):
        tensor = tensors[name]
        width = tensor.element_size()
        strides = [stride * width for stride in tensor.stride()]
        own = owner.as_strided((*tensor.shape, width), (*strides, 1), tensor.storage_offset() * width)
        if int(own.max()) >= 0:
            found.append((names[int(own.max())], name))
        own.fill_(index)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _told(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MOST} more" if len(items) > _MOST else ""
    return ", ".join(items[:_MOST]) + more
