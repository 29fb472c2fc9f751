"""What reaches each location of a grid, for one image and one network, small enough for a page."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield._core.checks import check
from widefield.analysis.contribution import contribution, frozen
from widefield.analysis.features import Features
from widefield.analysis.recomputation import recomputing

DECADES = 4
"""Powers of ten below its strongest pixel that a map shows."""

LARGE_IMAGE = 512 * 512
"""Pixels above which blocks are computed again for the backward pass rather than kept."""


@dataclass(frozen=True, kw_only=True)
class ExploredLocations:
    """The contribution maps of a grid of locations."""

    output_size: tuple[int, int]
    """Rows and columns of the feature map."""
    rows: tuple[int, ...]
    """Row of the feature map that stands for each row of the grid."""
    columns: tuple[int, ...]
    """Column of the feature map that stands for each column of the grid."""
    levels: Tensor
    """(rows, columns, h, w) uint8: 255 at the strongest pixel of a map, 0 from `DECADES` powers of ten below it."""
    half_shares: Tensor
    """(rows, columns): the smallest share of all pixels that holds half of the contribution; NaN if there is none."""


def explore(
    features: Features,
    image: Tensor,
    *,
    grid: tuple[int, int],
    side: int = 56,
    on_progress: Callable[[int], object] | None = None,
) -> ExploredLocations:
    """Compute what reaches every location of a grid.

    Args:
        features: From the image to a feature map (1, C', h, w).
        image: (1, C, H, W), normalised as the network wants it.
        grid: Rows and columns of locations, spread evenly over the image; at most those of the feature map.
        side: Longer side in pixels of the kept maps; larger ones are averaged down to it.
        on_progress: Called with the number of locations that were added.

    Returns:
        The map of `contribution` for each location. The network runs once for each row of the grid.

    Raises:
        InputError: If the grid is finer than the feature map, or as `contribution`.
    """
    with frozen(features.model):
        with torch.no_grad():
            height, width = features(image).shape[-2:]
        check(
            1 <= grid[0] <= height and 1 <= grid[1] <= width,
            f"a grid of 1 x 1 to {height} x {width}, the locations of the feature map",
            f"{grid[0]} x {grid[1]}",
            "choose fewer locations",
        )
        rows, columns = _spread(grid[0], height), _spread(grid[1], width)
        levels, shares = [], []
        is_large = image.shape[-2] * image.shape[-1] > LARGE_IMAGE
        for row in rows:
            with recomputing(features.model, features.module_name) if is_large else nullcontext():
                maps = contribution(features, image, [(row, column) for column in columns]).maps
            levels += map(decades, shrink(maps, side))
            shares += map(_half_share, maps)
            if on_progress is not None:
                on_progress(len(columns))
    return ExploredLocations(
        output_size=(height, width),
        rows=rows,
        columns=columns,
        levels=torch.stack(levels).unflatten(0, grid),
        half_shares=torch.tensor(shares, dtype=torch.float64).unflatten(0, grid),
    )


def shrink(maps: Tensor, side: int) -> Tensor:
    """Average maps (..., H, W) down until their longer side is `side`; smaller ones stay as they are."""
    height, width = maps.shape[-2:]
    scale = min(1.0, side / max(height, width))
    kept_size = (max(1, round(scale * height)), max(1, round(scale * width)))
    return F.adaptive_avg_pool2d(maps[None], kept_size)[0]


def decades(contribution: Tensor) -> Tensor:
    """Return the levels of a map on the logarithmic scale of `ExploredLocations.levels`; 0 where it is not finite."""
    largest = contribution.max()
    if not (torch.isfinite(largest) and largest > 0):
        return torch.zeros_like(contribution, dtype=torch.uint8)
    return (255 * (1 + torch.log10(contribution / largest) / DECADES).clamp(0, 1)).round().to(torch.uint8)


def _spread(count: int, length: int) -> tuple[int, ...]:
    """The index under the middle of each of `count` equal parts of `length`."""
    return tuple((2 * index + 1) * length // (2 * count) for index in range(count))


def _half_share(contribution: Tensor) -> float:
    total = contribution.sum()
    if not (torch.isfinite(total) and total > 0):
        return float("nan")
    held = contribution.flatten().sort(descending=True).values.cumsum(0)
    return (int((held < total / 2).sum()) + 1) / held.numel()
