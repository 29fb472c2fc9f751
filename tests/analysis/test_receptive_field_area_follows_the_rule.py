from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from widefield._core.errors import InputError
from widefield.analysis.area import interpolated_ratio, jackknife_interval, smallest_square
from widefield.analysis.receptive_field import ReceptiveField


def slow_square(values: Tensor, centre: tuple[int, int], threshold: float) -> tuple[int, float] | None:
    """The rule word for word: squares of side 2 i + 1 from i = 1 on, cut at the border."""
    height, width = values.shape
    total = values.sum().item()
    row, column = centre
    i = 1
    while 2 * i + 1 <= min(height, width):
        rows = slice(max(row - i, 0), row + i + 1)
        columns = slice(max(column - i, 0), column + i + 1)
        inside = values[rows, columns]
        if inside.sum().item() / total > threshold:
            return 2 * i + 1, inside.numel() / (height * width)
        i += 1
    return None


def field_of(mean: Tensor, **changes: object) -> ReceptiveField:
    height, width = mean.shape
    values: dict[str, object] = {
        "name": "drawn",
        "weights": "",
        "layer": "drawn",
        "location": (height // 32, width // 32),
        "input_size": (height, width),
        "output_size": (height // 16, width // 16),
        "images": 1,
        "skipped": 0,
        "mean": mean,
        "standard_error": torch.zeros_like(mean),
    }
    return ReceptiveField(**{**values, **changes})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("size", [(64, 64), (33, 33), (48, 64), (64, 31), (3, 5)])
@pytest.mark.parametrize("centre", ["middle", "corner", "anywhere"])
def test_the_square_is_that_of_the_slow_rule(size: tuple[int, int], centre: str) -> None:
    generator = torch.Generator().manual_seed(sum(size))
    places = {"middle": (size[0] // 2, size[1] // 2), "corner": (0, 0), "anywhere": (size[0] // 3, size[1] - 2)}
    values = torch.rand(size, generator=generator, dtype=torch.float64) ** 4
    for threshold in (0.01, 0.2, 0.3, 0.5, 0.9, 0.99):
        area = smallest_square(values, places[centre], threshold)
        expected = slow_square(values, places[centre], threshold)
        assert (area.side_px, area.ratio) == (expected or (None, None))


def test_a_uniform_map_has_ratios_close_to_the_shares() -> None:
    field = field_of(torch.full((512, 512), 0.3, dtype=torch.float64))
    for area in field.ratios:
        assert area.ratio == pytest.approx(area.threshold, abs=0.01)
        assert area.ratio is not None
        assert area.ratio > area.threshold
        assert (area.side_px, area.ratio) == slow_square(field.mean, (256, 256), area.threshold)


def test_what_no_square_holds_has_no_ratio() -> None:
    values = torch.zeros(32, 32, dtype=torch.float64)
    assert smallest_square(values, (16, 16), 0.5).ratio is None
    # The largest square around the middle leaves the first row and column out.
    values[0] = 1
    area = smallest_square(values, (16, 16), 0.5)
    assert (area.side_px, area.ratio, area.low) == (None, None, None)
    assert slow_square(values, (16, 16), 0.5) is None
    assert smallest_square(torch.ones(2, 2, dtype=torch.float64), (1, 1), 0.5).ratio is None


def test_the_published_scale_depends_on_the_size_of_gradients_and_the_linear_one_does_not() -> None:
    places = torch.arange(64, dtype=torch.float64) - 32
    mean = torch.exp(-(places[:, None] ** 2 + places[None] ** 2) / 50)
    weak, strong = field_of(1e-6 * mean), field_of(1e6 * mean)
    assert weak.area(0.5, "linear") == strong.area(0.5, "linear") == weak.area(0.5)
    wide, narrow = strong.area(0.5).ratio, weak.area(0.5).ratio
    assert wide is not None
    assert narrow is not None
    assert wide > 2 * narrow
    logarithms = torch.log10(strong.mean + 1)
    assert (strong.area(0.5).side_px, wide) == slow_square(logarithms / logarithms.max(), (32, 32), 0.5)


def test_squares_are_centred_on_the_image_as_published_or_on_the_cell_or_on_the_map() -> None:
    mean = torch.zeros(224, 224, dtype=torch.float64)
    mean[96, 100] = 1
    sizes = {"output_size": (7, 7), "location": (3, 3)}
    assert field_of(mean, **sizes).centre_px == (112, 112)
    assert field_of(mean, output_size=(7, 7), location=(0, 6)).centre_px == (16, 208)
    assert field_of(mean, **sizes, around="map").centre_px == (96, 100)
    assert field_of(torch.zeros_like(mean), **sizes, around="map").centre_px == (112, 112)
    assert math.isnan(field_of(torch.zeros_like(mean), **sizes).effective_diameter_px)


def test_the_interpolated_ratio_lies_between_the_steps() -> None:
    values = torch.rand(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for threshold in (0.0001, 0.1, 0.5, 0.9):
        ratio, step = interpolated_ratio(values, (32, 32), threshold), smallest_square(values, (32, 32), threshold)
        assert ratio is not None
        assert step.ratio is not None
        assert step.side_px is not None
        assert ratio <= step.ratio
        assert ratio >= (step.side_px - 2) ** 2 / 64**2 or step.side_px == 3
    assert interpolated_ratio(torch.zeros(8, 8), (4, 4), 0.5) is None


def test_the_jackknife_of_a_mean_is_the_interval_of_the_textbook() -> None:
    values = [0.3, 0.5, 0.45, 0.7, 0.2]
    mean = sum(values) / 5
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / 4 / 5)
    low, high = jackknife_interval(mean, [(sum(values) - value) / 4 for value in values], 5)
    assert (low, high) == pytest.approx((mean - 2.7764451 * error, mean + 2.7764451 * error))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    places = torch.arange(64, dtype=torch.float64) - 32
    distance = places[:, None] ** 2 + places[None] ** 2
    generator = torch.Generator().manual_seed(0)

    def draw(images: int) -> Tensor:
        """Gaussians whose widths vary from image to image."""
        widths = 4 + 4 * torch.rand(images, 1, 1, generator=generator, dtype=torch.float64)
        return torch.exp(-distance / (2 * widths**2)) / widths**2

    truth = interpolated_ratio(draw(4000).mean(0).log1p(), (32, 32), 0.5)
    assert truth is not None
    covered = 0
    for _ in range(100):
        maps = draw(25)
        groups = torch.stack([maps[index::10].sum(0) for index in range(10)]).float()
        area = field_of(maps.mean(0), images=25, group_sums=groups).area(0.5)
        assert area.ratio is not None
        assert area.low is not None
        assert area.high is not None
        # The interval is that of the ratio without steps, laid around the one with steps.
        shift = area.ratio - (interpolated_ratio(maps.mean(0).log1p(), (32, 32), 0.5) or 0)
        covered += area.low - shift <= truth <= area.high - shift
    assert 88 <= covered <= 99


def test_one_image_has_no_interval() -> None:
    mean = torch.rand(64, 64, dtype=torch.float64)
    assert field_of(mean).area(0.5).low is None
    assert field_of(mean, group_sums=mean[None].float()).area(0.5).high is None


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0, math.nan])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(InputError, match=r"Expected a threshold between 0 and 1, but got .*: use a share such as 0\.5"):
        smallest_square(torch.ones(8, 8), (4, 4), threshold)


def test_there_are_two_scales() -> None:
    with pytest.raises(InputError, match="Expected the name of a scale, but got 'logg': did you mean 'log'"):
        field_of(torch.ones(64, 64, dtype=torch.float64)).area(0.5, "logg")  # pyright: ignore[reportArgumentType]
