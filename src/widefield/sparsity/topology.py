"""One change of a mask: as many weights grown as were dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from widefield.sparsity.config import Grow, Prune
from widefield.sparsity.criteria import grow_gradient, grow_momentum, grow_random, prune_magnitude

_PRUNE = {"magnitude": prune_magnitude}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What has become of a mask."""

    mask: Tensor
    """Bool, true where a weight is active now; as many as before."""

    reset: Tensor
    """Bool, true where a weight was dropped or grown, or both: it and its moments start at zero."""


@torch.no_grad()
def exchange(
    weight: Tensor,
    mask: Tensor,
    fraction: float,
    *,
    prune: Prune,
    grow: Grow,
    generator: torch.Generator,
    evidence: Tensor | None = None,
) -> Exchange:
    """Drop ceil(fraction * n) of the n active weights and grow exactly as many, among all that are then zero.

    A dropped weight may come back, at zero, as in SLaK; its published code draws each zero with a probability instead,
    so that the count drifts. Never more are exchanged than there were zeros: a dense tensor stays as it is.

    Args:
        weight: Any shape.
        mask: Bool, true where a weight is active.
        fraction: Share of the active weights.
        prune: Name of the criterion for dropping.
        grow: Name of the criterion for growing.
        generator: For "random".
        evidence: Gradient or momentum; zero everywhere if there is none, so that the first places are taken.
    """
    active = int(mask.sum())
    # A product such as 0.1 * 30 that is a hair above the integer is the integer.
    count = min(math.ceil(round(fraction * active, 9)), mask.numel() - active)
    dropped = _PRUNE[prune](weight, mask, count)
    kept = mask & ~dropped
    if grow == "random":
        grown = grow_random(weight, kept, count, generator)
    else:
        evidence = torch.zeros_like(weight) if evidence is None else evidence
        grown = (grow_gradient if grow == "gradient" else grow_momentum)(weight, kept, count, evidence)
    return Exchange(mask=kept | grown, reset=dropped | grown)
