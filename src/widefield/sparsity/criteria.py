"""Which weights are dropped and which zeros take their place; ties go to the lower index, so that ranks agree."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest of `scores`, of equal ones the first; NaN counts as the highest.

    Args:
        scores: 1-d.
        count: From 0 to their number.

    Returns:
        Bool, of the same shape, with exactly `count` true.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    ordered = torch.where(scores.isnan(), torch.inf, scores)
    threshold = ordered.topk(count, largest=False, sorted=False).values.amax()
    below, equal = ordered < threshold, ordered == threshold
    return below | (equal & (equal.cumsum(0) <= count - below.sum()))


def prune_magnitude(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """Choose the `count` smallest active weights.

    Args:
        weight: Any shape.
        mask: Bool, true where a weight is active.
        count: At most the number of active weights.

    Returns:
        Bool, true where a weight is dropped.
    """
    return _among(mask, weight.detach().abs().float(), count)


def grow_random(weight: Tensor, mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` of the inactive weights.

    Args:
        weight: Not looked at.
        mask: Bool, true where a weight is active.
        count: At most the number of inactive weights.
        generator: On the CPU, so that the draw does not depend on the device.

    Returns:
        Bool, true where a weight is grown.
    """
    # Drawn here, chosen on the device: comparisons are exact everywhere.
    scores = torch.rand(mask.shape, generator=generator).to(mask.device)
    return _among(~mask, scores, count)


def grow_gradient(weight: Tensor, mask: Tensor, count: int, gradient: Tensor) -> Tensor:
    """Choose the `count` inactive weights of largest gradient.

    Args:
        weight: Not looked at.
        mask: Bool, true where a weight is active.
        count: At most the number of inactive weights.
        gradient: Of the loss by every weight, active or not; a factor such as a loss scale does not matter.

    Returns:
        Bool, true where a weight is grown.

    Source: Evci et al., "Rigging the Lottery" (ICML 2020), section 3.
    """
    return _among(~mask, -gradient.detach().abs().float(), count)


def grow_momentum(weight: Tensor, mask: Tensor, count: int, momentum: Tensor) -> Tensor:
    """Choose the `count` inactive weights of largest momentum.

    Args:
        weight: Not looked at.
        mask: Bool, true where a weight is active.
        count: At most the number of inactive weights.
        momentum: The optimizer's running mean of the gradient.

    Returns:
        Bool, true where a weight is grown.

    Source: Dettmers and Zettlemoyer, "Sparse Networks from Scratch" (2019), section 3.
    """
    return grow_gradient(weight, mask, count, momentum)


def draw(seed: int, update: int, index: int) -> torch.Generator:
    """Return the random numbers of one parameter at one update: no state of them has to be kept or shared.

    Args:
        seed: Of the run.
        update: Number of the change of masks; 0 for the first masks.
        index: Of the parameter among the sparse ones.
    """
    digest = hashlib.blake2b(f"{seed}/{update}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def _among(candidates: Tensor, scores: Tensor, count: int) -> Tensor:
    chosen = torch.zeros_like(candidates)
    chosen[candidates] = lowest(scores[candidates], count)
    return chosen
