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


def prune_set(weight: Tensor, mask: Tensor, count: int) -> Tensor:
    """Choose active weights next to zero, of each sign the same share: the smallest positive, the largest negative.

    Args:
        weight: Any shape.
        mask: Bool, true where a weight is active.
        count: At most the number of active weights; the positive ones, zero included, give the odd one.

    Returns:
        Bool, true where a weight is dropped; exactly `count` are.

    Source: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity inspired
    by network science" (Nature Communications, 2018), algorithm 1.
    """
    is_negative = mask & (weight.detach() < 0)
    active, negative = int(mask.sum()), int(is_negative.sum())
    of_negative = count * negative // max(active, 1)
    dropped = prune_magnitude(weight, is_negative, of_negative)
    return dropped | prune_magnitude(weight, mask & ~is_negative, count - of_negative)


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
        momentum: The optimizer's running mean of the gradient, for Adam divided by the root of that of its square.

    Returns:
        Bool, true where a weight is grown.

    Source: Dettmers and Zettlemoyer, "Sparse Networks from Scratch" (2019), section 3.
    """
    return grow_gradient(weight, mask, count, momentum)


def grow_momentum_neuron(weight: Tensor, mask: Tensor, count: int, momentum: Tensor) -> Tensor:
    """Choose `count` inactive weights: of each neuron those of largest momentum, and more of a neuron with more of it.

    A neuron is what one index of the first dimension belongs to: an output of a linear layer, a filter. Each gets a
    number in proportion to its mean absolute momentum, active weights included; what a neuron has no room for, and what
    is left by rounding down, goes to the others in the same way.

    Args:
        weight: Not looked at.
        mask: Bool, true where a weight is active; one dimension or more.
        count: At most the number of inactive weights.
        momentum: As in `grow_momentum`.

    Returns:
        Bool, true where a weight is grown.

    Source: the option "momentum_neuron" of the code of Dettmers and Zettlemoyer and of SLaK, which leaves what is lost
    by rounding ungrown, and every neuron with less than 10.
    """
    scores = momentum.detach().abs().float().flatten(1) if momentum.ndim > 1 else momentum.detach().abs()[:, None]
    open_places = ~mask.reshape(scores.shape)
    quotas = _quotas(scores.nan_to_num(0.0).double().mean(1), open_places.sum(1), count)
    ranked = torch.where(open_places & ~scores.isnan(), -scores, torch.inf).argsort(dim=1, stable=True)
    # Places that are taken have the score of those that are not numbers: the open ones among equals come first.
    ranked = ranked.gather(1, open_places.gather(1, ranked).logical_not().to(torch.uint8).argsort(dim=1, stable=True))
    places = torch.arange(scores.shape[1], device=scores.device)
    grown = torch.zeros_like(open_places).scatter(1, ranked, places < quotas[:, None])
    return grown.reshape(mask.shape)


def _quotas(shares: Tensor, room: Tensor, count: int) -> Tensor:
    """Divide `count` by `shares`, at most `room` each: rounded down, again and again, then one each to the largest."""
    quotas = torch.zeros_like(room)
    while (rest := count - int(quotas.sum())) > 0:
        left = room - quotas
        weights = torch.where(left > 0, shares, 0.0)
        if not bool(weights.any()):
            weights = (left > 0).double()
        wanted = weights / weights.sum() * rest
        more = torch.minimum(wanted.floor().long(), left)
        if not bool(more.any()):
            more = lowest(torch.where(left > 0, -wanted, torch.inf), min(rest, int((left > 0).sum()))).long()
        quotas += more
    return quotas


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
