"""The share of an image that a centred square must cover to hold a given share of a map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from widefield._core.checks import check


@dataclass(frozen=True, kw_only=True)
class Area:
    """The smallest centred square that holds more than a share of a map."""

    threshold: float
    """t: the share of the map's sum that it shall exceed."""
    side_px: int | None
    """Its side, odd; None if no square that fits into the image holds as much."""
    ratio: float | None
    """r(t): the share of the image that it covers."""
    low: float | None = None
    """Lower end of the 95 % interval of the ratio over images; None for fewer than two images."""
    high: float | None = None
    """Upper end of the 95 % interval of the ratio over images."""


def smallest_square(values: Tensor, centre: tuple[int, int], threshold: float) -> Area:
    """Grow a square by a pixel on each side until it holds more than `threshold` of the sum of a map.

    Args:
        values: (H, W), not negative.
        centre: Row and column of the pixel to grow around, from a side of 3. What lies outside the image is cut off.
        threshold: Share of the sum, in (0, 1).

    Returns:
        The square; none if its side would exceed the smaller of H and W.

    Raises:
        InputError: If the threshold is no such share.

    Source: the published code of RepLKNet, arXiv 2203.06717, Table 10.
    """
    _check_threshold(threshold)
    shares, covered = _squares(values, centre)
    index = _first(shares, threshold)
    index = None if index is None else max(index, 1)
    if index is None or index == len(shares):
        return Area(threshold=threshold, side_px=None, ratio=None)
    return Area(threshold=threshold, side_px=2 * index + 1, ratio=covered[index].item())


def interpolated_ratio(values: Tensor, centre: tuple[int, int], threshold: float) -> float | None:
    """Return the ratio of `smallest_square` without its steps, which hide small changes of a map; or None."""
    _check_threshold(threshold)
    shares, covered = _squares(values, centre)
    index = _first(shares, threshold)
    if index is None:
        return None
    upper_share, upper_cover = shares[index].item(), covered[index].item()
    lower_share, lower_cover = (shares[index - 1].item(), covered[index - 1].item()) if index else (0.0, 0.0)
    return lower_cover + (threshold - lower_share) / (upper_share - lower_share) * (upper_cover - lower_cover)


def jackknife_interval(estimate: float, replicates: list[float], groups: int) -> tuple[float, float]:
    """Return the 95 % interval of an estimate by the delete-a-group jackknife and Student's t.

    Args:
        estimate: A ratio in [0, 1].
        replicates: What it would be without each of the groups.
        groups: How many there are, at least 2.
    """
    from scipy.stats import t

    mean = math.fsum(replicates) / groups
    variance = (groups - 1) / groups * math.fsum((value - mean) ** 2 for value in replicates)
    reach = float(t.ppf(0.975, groups - 1)) * math.sqrt(variance)
    return max(0.0, estimate - reach), min(1.0, estimate + reach)


def _check_threshold(threshold: float) -> None:
    check(0 < threshold < 1, "a threshold between 0 and 1", f"{threshold}", "use a share such as 0.5")


def _squares(values: Tensor, centre: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The share of the sum in, and of the image under, the squares of sides 1, 3, 5, ... that fit into the image."""
    height, width = values.shape
    rows, columns = ((torch.arange(n) - middle).abs() for n, middle in zip((height, width), centre, strict=True))
    distance = torch.maximum(rows[:, None], columns[None]).flatten()
    sums = torch.bincount(distance, values.double().flatten()).cumsum(0)
    pixels = torch.bincount(distance).cumsum(0)
    fitting = (min(height, width) + 1) // 2
    return sums[:fitting] / sums[-1], pixels[:fitting].double() / (height * width)


def _first(shares: Tensor, threshold: float) -> int | None:
    # Where a map is zero throughout, the shares are not numbers, and exceed nothing.
    exceeding = (shares > threshold).nonzero()
    return int(exceeding[0]) if len(exceeding) else None
