"""What backends derive from a kernel (spectra, shifted copies), kept while the kernel stays the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from widefield.ops.functions import carries_derivatives, is_jit_traced

MOST_FORMS = 8
"""Derived forms kept for one kernel, one for each map size; beyond it the oldest is dropped."""


Version = tuple[int, int]


@dataclass(frozen=True)
class _Form:
    tensor: Tensor
    sums: tuple[float, ...]
    """Of the kernel that it was derived from."""


@dataclass
class _Entry:
    version: Version
    forms: dict[Hashable, _Form | None] = field(default_factory=dict[Hashable, _Form | None])
    is_derived: bool = False
    """Whether the kernel is such a form itself, which nobody writes to."""


_entries = cast("MutableMapping[Tensor | torch.UntypedStorage, _Entry]", WeakIdKeyDictionary())


def derived(weight: Tensor, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """Return ``make()``, remembered from the second call on for which the kernel has not changed.

    Args:
        weight: The kernel, or a view of it.
        key: Everything else that the derived form depends on: its name, sizes, dtype.
        make: Computes the derived form.

    Returns:
        The derived form; do not write to it.
    """
    form = kept(weight, key, make)
    return make() if form is None else form


def kept(weight: Tensor, key: Hashable, make: Callable[[], Tensor]) -> Tensor | None:
    """Return ``make()``, remembered, or None if the kernel has not been seen with these values before.

    A training step changes the kernel, so nothing is kept there; inference meets the same kernel again and again.
    Changes are seen through torch's version counter and, because ``weight.data`` escapes that counter and what
    inference mode made has none, on a CPU through three sums of the values. A kernel with a tangent is not looked up:
    what was kept knows nothing of it.

    Args:
        weight: The kernel, or a view of it.
        key: Everything else that the derived form depends on: its name, sizes, dtype.
        make: Computes the derived form, if it is to be kept.

    Returns:
        The derived form, an ordinary tensor also if inference mode is on; do not write to it.
    """
    # A traced program would hold what is kept in place of the kernel.
    if carries_derivatives(weight) or is_jit_traced():
        return None
    if weight.is_inference() and weight.device.type != "cpu":
        return None
    owner, version = _owner(weight), _version(weight)
    entry = _entries.get(owner)
    if entry is None or entry.version != version:
        entry = _Entry(version)
        _entries[owner] = entry
    full_key = (key, tuple(weight.shape), weight.stride(), weight.storage_offset())
    if full_key not in entry.forms:
        while len(entry.forms) >= MOST_FORMS:
            entry.forms.pop(next(iter(entry.forms)))
        entry.forms[full_key] = None
        return None
    sums = () if entry.is_derived else _sums(weight)
    form = entry.forms[full_key]
    if form is None or form.sums != sums:
        form = entry.forms[full_key] = _Form(_made(make), sums)
        _entries[form.tensor] = _Entry(_version(form.tensor), is_derived=True)
    return form.tensor


def fingerprint(weight: Tensor) -> Hashable:
    """Return what changes with the values of a kernel: part of a key for what is derived from several kernels."""
    return _version(weight), tuple(weight.shape), weight.stride(), weight.storage_offset(), _sums(weight)


def _owner(weight: Tensor) -> Tensor | torch.UntypedStorage:
    """Return what lives as long as the kernel's values do, and is the same object at every call."""
    if weight._base is not None:
        return weight._base
    # Views that inference mode makes know no base; their storage is the same.
    return weight.untyped_storage() if weight.is_inference() else weight


def _version(weight: Tensor) -> Version:
    return -1 if weight.is_inference() else weight._version, weight.untyped_storage().data_ptr()


def _made(make: Callable[[], Tensor]) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        form = make()
        return form.clone() if form.is_inference() else form


def _sums(weight: Tensor) -> tuple[float, ...]:
    if weight.device.type != "cpu":
        # Reading a sum back would stop the GPU's queue; there the version counter has to do.
        return ()
    flat = weight.detach().reshape(-1)
    half, third = flat.numel() // 2, flat.numel() // 3
    # A cut within a kernel, at a third, and a product of halves tell values that changed places.
    return float(flat.sum()), float(flat[:third].sum()), float(torch.dot(flat[:half], flat[half : 2 * half]))
