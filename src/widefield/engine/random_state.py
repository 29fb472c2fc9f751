"""The state of every random generator that a run draws from, as tensors of fixed shape."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping


def rng_state() -> dict[str, Tensor]:
    """Return the state of Python's, NumPy's and torch's generators, and of the current CUDA device if there is one."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    assert kind == "MT19937"
    tensors = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.tensor([*np.asarray(keys).tolist(), int(position), int(has_gauss)], dtype=torch.int64),
        "numpy_gauss": torch.tensor([float(cached)], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def restore_rng_state(tensors: Mapping[str, Tensor]) -> None:
    """Set the generators to what `rng_state` returned; a CUDA state is left aside where there is no CUDA.

    Args:
        tensors: What `rng_state` returned.
    """
    version, *words = tensors["python"].tolist()
    has_gauss, gauss = tensors["python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss if has_gauss else None))
    *keys, position, cached = tensors["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, cached, tensors["numpy_gauss"].item()))
    torch.set_rng_state(tensors["torch"].clone())
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"].clone())
