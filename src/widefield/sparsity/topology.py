"""One change of a mask: as many weights grown as were dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from widefield.sparsity.config import Grow, Prune
from widefield.sparsity.criteria import (
    grow_gradient,
    grow_momentum,
    grow_momentum_neuron,
    grow_random,
    prune_magnitude,
    prune_set,
)

_PRUNE = {"magnitude": prune_magnitude, "set": prune_set}
_GROW = {"gradient": grow_gradient, "momentum": grow_momentum, "momentum_neuron": grow_momentum_neuron}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What has become of a mask."""

    mask: Tensor
    """Bool, true where a weight is active now; as many as before."""

    reset: Tensor
    """Bool, true where the mask has changed: a weight was dropped, or grown and starts at zero."""


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

    As in SLaK, a weight that was just dropped may be among those that are grown: it then keeps its value, as if nothing
    had happened. A dense tensor, where no others can be grown, stays as it is. The published code draws each zero with
    a probability instead of exactly as many as were dropped, so that its count drifts.

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
    if active == mask.numel():
        return Exchange(mask=mask, reset=torch.zeros_like(mask))
    # A product such as 0.1 * 30 that is a hair above the integer is the integer.
    count = math.ceil(round(fraction * active, 9))
    kept = mask & ~_PRUNE[prune](weight, mask, count)
    if grow == "random":
        grown = grow_random(weight, kept, count, generator)
    else:
        grown = _GROW[grow](weight, kept, count, torch.zeros_like(weight) if evidence is None else evidence)
    changed = kept | grown
    return Exchange(mask=changed, reset=changed ^ mask)
