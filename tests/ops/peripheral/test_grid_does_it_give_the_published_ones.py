from __future__ import annotations

import re

import pytest

from widefield._core.errors import InputError
from widefield.ops.peripheral_kernel import SharingGrid

PUBLISHED = {
    (31, 2): (7, 4, 2, 1, 1, 1),
    (33, 2): (8, 4, 2, 1, 1, 1),
    (51, 0): (11, 8, 4, 2, 1),
    (51, 1): (10, 8, 4, 2, 1, 1),
    (51, 2): (9, 8, 4, 2, 1, 1, 1),
    (51, 3): (8, 8, 4, 2, 1, 1, 1, 1),
}
"""Kernel size and centre radius: half grids of figure 1b and tables 5 and 6."""

BY_THE_SAME_RULE = {
    (13, 2): (2, 2, 1, 1, 1),
    (47, 2): (7, 8, 4, 2, 1, 1, 1),
    (49, 2): (8, 8, 4, 2, 1, 1, 1),
    (13, 3): (1, 2, 1, 1, 1, 1),
    (67, 3): (16, 8, 4, 2, 1, 1, 1, 1),
    (69, 3): (1, 16, 8, 4, 2, 1, 1, 1, 1),
    (101, 3): (17, 16, 8, 4, 2, 1, 1, 1, 1),
    (151, 3): (10, 32, 16, 8, 4, 2, 1, 1, 1, 1),
}

TABLE_5 = [
    (SharingGrid.dense(33), (1,) * 17, 1.00),
    (SharingGrid.uniform(33), (2, 2, 2, 2, 2, 2, 2, 2, 1), 0.27),
    (SharingGrid.uniform(33, centre_radius=2), (2, 2, 2, 2, 2, 2, 2, 1, 1, 1), 0.33),
    (SharingGrid.exponential(33, largest=4), (4, 4, 4, 2, 1, 1, 1), 0.16),
    (SharingGrid.exponential(33), (8, 4, 2, 1, 1, 1), 0.11),
    (SharingGrid.exponential(33).inverted(), (1, 1, 2, 4, 8, 1), 0.11),
]


@pytest.mark.parametrize(("kernel_size", "radius"), [*PUBLISHED, *BY_THE_SAME_RULE])
def test_the_exponential_rule_gives_every_published_grid(kernel_size: int, radius: int) -> None:
    grid = SharingGrid.exponential(kernel_size, radius)
    assert grid.half == (PUBLISHED | BY_THE_SAME_RULE)[kernel_size, radius]
    assert grid == SharingGrid.from_half(grid.half)
    assert grid.kernel_size == kernel_size
    assert grid.is_symmetric


@pytest.mark.parametrize(("grid", "half", "ratio"), TABLE_5)
def test_the_six_grids_of_table_5_and_their_parameters(grid: SharingGrid, half: tuple[int, ...], ratio: float) -> None:
    assert grid.half == half
    assert grid.kernel_size == 33
    assert round(grid.ratio, 2) == ratio
    assert grid.parameters == 2 * len(half) - 1


@pytest.mark.parametrize(("radius", "percent"), [(0, 0.04), (1, 0.35), (2, 0.96), (3, 1.88)])
def test_the_centres_of_table_6(radius: int, percent: float) -> None:
    grid = SharingGrid.exponential(51, radius)
    first = (grid.parameters - 1) // 2 - radius
    assert grid.sizes[first : first + 2 * radius + 1] == (1,) * (2 * radius + 1)
    # The paper cuts 0.346 and 0.961 to 0.35 and 0.96: half a unit of the last digit either way.
    assert abs(100 * ((2 * radius + 1) / grid.kernel_size) ** 2 - percent) < 0.0051


@pytest.mark.parametrize(("kernel_size", "radius", "ratio"), [(31, 2, 0.126), (51, 2, 0.065), (101, 3, 0.028)])
def test_the_share_of_free_parameters(kernel_size: int, radius: int, ratio: float) -> None:
    assert round(SharingGrid.exponential(kernel_size, radius).ratio, 3) == ratio


def test_the_toy_example_of_the_paper() -> None:
    grid = SharingGrid((2, 1, 2))
    assert (grid.kernel_size, grid.parameters, grid.bounds) == (5, 3, (0, 2, 3, 5))
    assert grid == SharingGrid.exponential(5, 0)


def test_a_base_of_three_grows_by_threes() -> None:
    assert SharingGrid.exponential(29, 1, 3).half == (1, 9, 3, 1, 1)


def test_a_centre_wider_than_the_kernel_shares_nothing() -> None:
    assert SharingGrid.exponential(5, 9) == SharingGrid.dense(5)


def test_reversing_an_asymmetric_grid() -> None:
    grid = SharingGrid((3, 1, 2))
    assert grid.reversed().sizes == (2, 1, 3)
    assert not grid.is_symmetric


def test_cropping_keeps_what_lies_inside() -> None:
    grid = SharingGrid((3, 1, 2, 5))
    assert grid.cropped(0) == (grid, 0)
    assert grid.cropped(2) == (SharingGrid((1, 1, 2, 3)), 0)
    assert grid.cropped(4) == (SharingGrid((2, 1)), 2)
    assert grid.cropped(5) == (SharingGrid((1,)), 2)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: SharingGrid(()), "Expected cell sizes that are whole numbers above 0, but got ()"),
        (lambda: SharingGrid((2, 0, 1)), "but got (2, 0, 1): give one size for each cell"),
        (lambda: SharingGrid.exponential(50), "Expected an odd kernel size, but got 50: use 51"),
        (lambda: SharingGrid.exponential(51, -1), "Expected a centre radius of at least 0, but got -1"),
        (lambda: SharingGrid.exponential(51, base=1), "Expected a base above 1, but got 1"),
        (lambda: SharingGrid.exponential(51, largest=0), "Expected a largest cell above 0, but got 0"),
        (lambda: SharingGrid.uniform(51, 0), "Expected a cell size above 0, but got 0"),
        (lambda: SharingGrid.dense(0), "Expected a kernel size above 0, but got 0"),
        (
            lambda: SharingGrid((3, 1, 2)).half,
            "Expected a grid that is symmetric about a central cell, but got (3, 1, 2)",
        ),
        (lambda: SharingGrid((2, 2)).inverted(), "symmetric about a central cell, but got (2, 2)"),
        (lambda: SharingGrid((2, 1, 2)).cropped(3), "leaves some of the 5 taps, but got 3: cut fewer taps"),
    ],
)
def test_what_cannot_be_a_grid_is_said_in_one_sentence(make: object, sentence: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=re.escape(sentence)):
        make()
