from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from widefield.data import AugmentationConfig, DataConfig
from widefield.data.randomness import seed_global_generators
from widefield.data.transforms import train_transform

SIZE = 64
GREY = 77
DATA = DataConfig(image_size=SIZE, mean=(0.0, 0.0, 0.0), std=(0.1, 0.1, 0.1))
ERASED = AugmentationConfig(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    horizontal_flip=0.0,
    color_jitter=0.0,
    auto_augment=None,
    random_erasing=1.0,
)


def erased(seed: int, **changes: Any) -> tuple[Tensor, Tensor]:
    """Return an image of one colour with its rectangles, and which of its pixels (H, W) they cover."""
    seed_global_generators(seed)
    image = train_transform(DATA, dataclasses.replace(ERASED, **changes))(Image.new("RGB", (SIZE, SIZE), (GREY,) * 3))
    return image, (image - GREY / 255 / 0.1).abs().amax(0) > 1e-3


def rectangles(mask: Tensor) -> int:
    """Count the rectangles of a mask whose rectangles do not touch: each has one upper left corner."""
    padded = torch.nn.functional.pad(mask, (1, 0, 1, 0))
    return int((padded[1:, 1:] & ~padded[:-1, 1:] & ~padded[1:, :-1]).sum())


def test_the_published_erasing_is_the_default():
    config = AugmentationConfig()
    assert (config.random_erasing, config.random_erasing_mode, config.random_erasing_count) == (0.25, "pixel", 1)


def test_pixels_are_drawn_one_by_one_from_a_normal_distribution():
    drawn = []
    for seed in range(40):
        image, mask = erased(seed)
        assert rectangles(mask) == 1
        values = image[:, mask]
        assert values.unique().numel() > 0.99 * values.numel()
        drawn.append(values)
    values = torch.cat([part.flatten() for part in drawn]).double()
    assert values.numel() > 20_000
    assert values.mean().abs() < 0.03
    assert (values.std() - 1).abs() < 0.03
    # Shares of a normal distribution within one and two standard deviations.
    assert ((values.abs() < 1).double().mean() - 0.6827).abs() < 0.01
    assert ((values.abs() < 2).double().mean() - 0.9545).abs() < 0.01


def test_a_colour_is_drawn_for_each_channel_and_a_constant_is_zero():
    image, mask = erased(3, random_erasing_mode="rand")
    colours = image[:, mask]
    assert torch.equal(colours, colours[:, :1].expand_as(colours))
    assert colours[:, 0].unique().numel() == 3
    image, mask = erased(3, random_erasing_mode="const")
    assert image[:, mask].abs().max() == 0


def test_the_count_is_the_largest_number_of_rectangles():
    once = [rectangles(erased(seed)[1]) for seed in range(30)]
    often = [rectangles(erased(seed, random_erasing_count=4)[1]) for seed in range(60)]
    assert set(once) == {1}
    # Rectangles that touch or overlap count otherwise, so that only the spread is certain.
    assert min(often) == 1
    assert max(often) >= 3


@pytest.mark.parametrize("mode", ["pixel", "rand"])
def test_the_draws_belong_to_the_sample(mode: str):
    first, second = erased(5, random_erasing_mode=mode)[0], erased(5, random_erasing_mode=mode)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, erased(6, random_erasing_mode=mode)[0])


def test_no_image_is_erased_at_a_probability_of_zero():
    assert not erased(0, random_erasing=0.0)[1].any()
