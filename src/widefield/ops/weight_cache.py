"""What backends derive from a kernel (spectra, shifted copies), kept while the kernel stays the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

MOST_FORMS = 8
"""Derived forms kept for one kernel, one for each map size; beyond it the oldest is dropped."""


@dataclass
class _Entry:
    version: tuple[int, int]
    sums: tuple[float, ...] = ()
    forms: dict[Hashable, Tensor | None] = field(default_factory=dict[Hashable, Tensor | None])
    is_derived: bool = False
    """Whether the kernel is such a form itself, which nobody writes to."""


_entries = cast("MutableMapping[Tensor, _Entry]", WeakIdKeyDictionary())


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
    Changes are seen through torch's version counter and, because ``weight.data`` escapes that counter, on a CPU
    through three sums of the values.

    Args:
        weight: The kernel, or a view of it.
        key: Everything else that the derived form depends on: its name, sizes, dtype.
        make: Computes the derived form, if it is to be kept.

    Returns:
        The derived form; do not write to it.
    """
    base = weight if weight._base is None else weight._base
    if base.is_inference():
        return None
    version = (base._version, base.data_ptr())
    entry = _entries.get(base)
    if entry is None or entry.version != version:
        entry = _Entry(version)
        _entries[base] = entry
    full_key = (key, tuple(weight.shape), weight.storage_offset())
    if full_key not in entry.forms:
        while len(entry.forms) >= MOST_FORMS:
            entry.forms.pop(next(iter(entry.forms)))
        entry.forms[full_key] = None
        return None
    sums = entry.sums if entry.is_derived else _sums(base)
    if sums != entry.sums:
        entry.forms = dict.fromkeys(entry.forms)
        entry.sums = sums
    form = entry.forms[full_key]
    if form is None:
        form = entry.forms[full_key] = make()
        _entries[form] = _Entry((form._version, form.data_ptr()), is_derived=True)
    return form


def fingerprint(weight: Tensor) -> Hashable:
    """Return what changes with the values of a kernel: part of a key for what is derived from several kernels."""
    return weight._version, weight.data_ptr(), tuple(weight.shape), _sums(weight)


def _sums(weight: Tensor) -> tuple[float, ...]:
    if weight.device.type != "cpu":
        # Reading a sum back would stop the GPU's queue; there the version counter has to do.
        return ()
    flat = weight.detach().reshape(-1)
    half, third = flat.numel() // 2, flat.numel() // 3
    # A cut within a kernel, at a third, and a product of halves tell values that changed places.
    return float(flat.sum()), float(flat[:third].sum()), float(torch.dot(flat[:half], flat[half : 2 * half]))
