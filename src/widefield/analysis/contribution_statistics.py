"""Mean, spread and group sums of the contribution maps of many images, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

GROUPS = 10
"""Into how many groups images are dealt, one after the other, for intervals over images."""


class ContributionStatistics:
    """Running statistics of maps, one set for each location.

    Args:
        locations: How many.
        size: (H, W) of a map.
    """

    def __init__(self, locations: int, size: tuple[int, int]) -> None:
        shape = (locations, *size)
        self.images = 0
        self.mean = torch.zeros(shape, dtype=torch.float64)
        """(locations, H, W)"""
        self.squares = torch.zeros(shape, dtype=torch.float64)
        """(locations, H, W) sums of squared deviations from the mean."""
        self.group_sums = torch.zeros((GROUPS, *shape), dtype=torch.float32)
        """(groups, locations, H, W)"""

    def add(self, maps: Tensor) -> None:
        """Count the maps (locations, H, W) of one image, by Welford's recurrence."""
        self.group_sums[self.images % GROUPS] += maps.float()
        self.images += 1
        deviation = maps - self.mean
        self.mean += deviation / self.images
        self.squares += deviation * (maps - self.mean)

    @property
    def standard_error(self) -> Tensor:
        """(locations, H, W) of the mean over images; NaN for fewer than two."""
        if self.images < 2:
            return torch.full_like(self.mean, float("nan"))
        return (self.squares / ((self.images - 1) * self.images)).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """Return all there is to keep beside the number of images."""
        return {"mean": self.mean, "squares": self.squares, "group_sums": self.group_sums}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], images: int) -> ContributionStatistics:
        """Return the statistics whose `tensors` these are."""
        locations, height, width = tensors["mean"].shape
        statistics = cls(locations, (height, width))
        statistics.images = images
        for name, tensor in statistics.tensors().items():
            tensor.copy_(tensors[name])
        return statistics
