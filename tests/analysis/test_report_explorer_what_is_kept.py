from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.analysis import explorer
from widefield.analysis.explorer import DECADES, explore
from widefield.analysis.features import Features


def slowly(features: nn.Module, image: Tensor, row: int, column: int) -> Tensor:
    """What one location is given by each pixel: one forward and one backward pass for it alone."""
    pixels = image.clone().requires_grad_()
    features(pixels)[0, :, row, column].clamp_min(0).sum().backward()
    assert pixels.grad is not None
    return pixels.grad[0].clamp_min(0).sum(0).double()


def levels_of(contribution: Tensor) -> Tensor:
    largest = contribution.max().item()

    def level(value: float) -> float:
        return 255 * max(1 + math.log10(value / largest) / DECADES, 0) if value else 0

    return torch.tensor([[level(value) for value in row] for row in contribution.tolist()], dtype=torch.float64)


def made_of(function: Callable[[Tensor], Tensor]) -> Features:
    return Features(nn.Identity(), lambda _, pixels: function(pixels))


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2, 2), nn.GELU(), nn.Conv2d(8, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 8, 3, 1, 1)
    )


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))


def test_every_map_is_the_one_of_its_location_alone(network: nn.Sequential, image: Tensor) -> None:
    explored = explore(Features(network, ""), image, grid=(3, 4), side=32)
    assert explored.output_size == (6, 8)
    assert explored.rows == (1, 3, 5)
    assert explored.columns == (1, 3, 5, 7)
    assert explored.levels.shape == (3, 4, 24, 32)
    for i, row in enumerate(explored.rows):
        for j, column in enumerate(explored.columns):
            contribution = slowly(network, image, row, column)
            torch.testing.assert_close(explored.levels[i, j].double(), levels_of(contribution), atol=1, rtol=0)
            strongest = sorted(contribution.flatten().tolist(), reverse=True)
            half = next(n for n in range(1, len(strongest) + 1) if sum(strongest[:n]) >= contribution.sum().item() / 2)
            assert explored.half_shares[i, j] == pytest.approx(half / (24 * 32))


def test_larger_maps_are_averaged_down(network: nn.Sequential, image: Tensor) -> None:
    explored = explore(Features(network, ""), image, grid=(1, 1), side=16)
    contribution = slowly(network, image, explored.rows[0], explored.columns[0])
    blocks = contribution.view(12, 2, 16, 2).mean((1, 3))
    torch.testing.assert_close(explored.levels[0, 0].double(), levels_of(blocks), atol=1, rtol=0)


def test_a_location_that_nothing_reaches_is_said_to_be_one(image: Tensor) -> None:
    explored = explore(made_of(lambda pixels: -pixels.square()), image, grid=(2, 2))
    assert not explored.levels.any()
    assert explored.half_shares.isnan().all()


def test_gradients_that_are_not_finite_are_no_map(image: Tensor) -> None:
    explored = explore(made_of(lambda pixels: (pixels - pixels.detach()).sqrt() + 1), image, grid=(1, 1))
    assert not explored.levels.any()
    assert explored.half_shares.isnan().all()


def test_progress_is_told_and_the_network_is_left_as_it_was(network: nn.Sequential, image: Tensor) -> None:
    told: list[int] = []
    with torch.no_grad():
        explore(Features(network, ""), image, grid=(2, 3), on_progress=told.append)
    assert sum(told) == 6
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert network.training
    assert not image.requires_grad


def test_a_grid_finer_than_the_map_is_refused(network: nn.Sequential, image: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        explore(Features(network, ""), image, grid=(7, 8))
    assert str(caught.value) == (
        "Expected a grid of 1 x 1 to 6 x 8, the locations of the feature map, but got 7 x 8: choose fewer locations."
    )


def test_large_images_are_computed_in_parts_to_the_same_maps(
    network: nn.Sequential, image: Tensor, monkeypatch
) -> None:
    network = nn.Sequential(nn.Sequential(*network[:2]), nn.Sequential(*network[2:]))
    kept = explore(Features(network, ""), image, grid=(2, 2))
    monkeypatch.setattr(explorer, "LARGE_IMAGE", 1)
    again = explore(Features(network, ""), image, grid=(2, 2))
    assert torch.equal(kept.levels, again.levels)
