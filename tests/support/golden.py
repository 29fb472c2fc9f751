"""Recorded outputs of the published models, with the weights and the input that belong to them.

The files in ``records`` hold figures: keys and shapes of the published state dicts, and what the published code
computed in float64 with the weights that `state` draws.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

RECORDS = Path(__file__).with_name("records")


def record(name: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"{name}.json").read_text())


def state(entries: list[tuple[str, list[int]]]) -> dict[str, Tensor]:
    """Draw every tensor of a published state dict by its place in it, in float64."""
    drawn: dict[str, Tensor] = {}
    index = 0
    for key, shape in entries:
        if key.endswith("num_batches_tracked"):
            drawn[key] = torch.zeros(shape, dtype=torch.int64)
            continue
        z = np.random.RandomState(1000 + index).standard_normal(math.prod(shape)).reshape(shape)
        drawn[key] = torch.from_numpy(_scaled(key.rpartition(".")[2], z))
        index += 1
    return drawn


def _scaled(leaf: str, z: np.ndarray) -> np.ndarray:
    if leaf == "running_var":
        return 1 + 0.2 * np.abs(z)
    if leaf in ("running_mean", "bias", "beta"):
        return 0.1 * z
    if leaf == "gamma" and z.ndim == 1:
        return 0.1 * (1 + 0.1 * z)
    if max(z.shape) == z.size:
        return 1 + 0.1 * z
    return z / np.sqrt(math.prod(z.shape[1:]))


def image(size: list[int]) -> Tensor:
    return torch.from_numpy(np.random.RandomState(7).standard_normal(size))


def half_units(values: list[float], digits: int = 10) -> Tensor:
    """Half a unit of the last recorded digit of each value, plus what rounding adds."""
    return torch.tensor(
        [0.5 * 10.0 ** (math.floor(math.log10(abs(v))) + 1 - digits) + 1e-13 * abs(v) for v in values],
        dtype=torch.float64,
    )
