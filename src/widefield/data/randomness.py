"""Draws that depend on nothing but a key: seeds for Python's, NumPy's and torch's global generators."""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def seed_of(*key: int | str) -> int:
    """Return the 64-bit seed of a key, the same on every machine and in every version."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def random_state(*key: int | str) -> np.random.RandomState:
    """Return a generator seeded by a key; NumPy has frozen the streams of this one."""
    return np.random.RandomState(_words(seed_of(*key)))


def seed_global_generators(seed: int) -> None:
    """Seed `random`, `numpy.random` and torch's CPU generator with a 64-bit seed."""
    random.seed(seed)
    np.random.seed(_words(seed))
    # Not torch.manual_seed: that one would also reset the generators of the accelerators, which the model draws from.
    torch.default_generator.manual_seed(seed)


@contextmanager
def preserved_global_generators() -> Iterator[None]:
    """Give the three global generators back in the state they were taken in."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _words(seed: int) -> np.ndarray:
    return np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
