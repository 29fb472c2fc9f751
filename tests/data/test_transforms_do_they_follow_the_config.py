from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from widefield._core.errors import InputError
from widefield.data import AugmentationConfig, DataConfig, evaluation_transform
from widefield.data.randomness import seed_global_generators
from widefield.data.transforms import batch_mixing, train_transform

STILL = AugmentationConfig(
    crop_scale=(1.0, 1.0),
    crop_ratio=(1.0, 1.0),
    horizontal_flip=0.0,
    color_jitter=0.0,
    auto_augment=None,
    random_erasing=0.0,
)


def picture() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8))


def test_evaluation_crops_the_centre_and_normalises():
    data = DataConfig(image_size=40, crop_fraction=1.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    tensor = evaluation_transform(data)(picture())
    centre = torch.from_numpy(np.asarray(picture())[:, 10:50].copy()).permute(2, 0, 1) / 255
    expected = (centre - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    assert tensor.dtype == torch.float32
    assert torch.allclose(tensor, expected, atol=1e-6)


def test_the_crop_fraction_widens_what_is_cut():
    whole = Image.new("RGB", (100, 100), "white")
    whole.paste("black", (10, 10, 90, 90))
    tensor = evaluation_transform(DataConfig(image_size=80, crop_fraction=0.8, mean=(0, 0, 0), std=(1, 1, 1)))(whole)
    assert tensor.abs().max() == 0


@pytest.mark.parametrize(("mode", "reds", "blues"), [("center", 0, 0), ("squash", 8, 8)])
def test_squashing_keeps_the_whole_image_and_cropping_its_middle(mode: Any, reds: int, blues: int):
    wide = Image.new("RGB", (80, 40), "lime")
    wide.paste("red", (0, 0, 20, 40))
    wide.paste("blue", (60, 0, 80, 40))
    data = DataConfig(image_size=32, crop_fraction=1.0, crop_mode=mode, mean=(0, 0, 0), std=(1, 1, 1))
    row = evaluation_transform(data)(wide)[:, 16].round()
    assert row.shape == (3, 32)
    assert row[0].sum() == reds
    assert row[2].sum() == blues


def test_squashing_crops_as_the_fraction_says():
    tall = Image.new("RGB", (60, 100), "white")
    tall.paste("black", (6, 10, 54, 90))
    data = DataConfig(image_size=80, crop_fraction=0.8, crop_mode="squash", mean=(0, 0, 0), std=(1, 1, 1))
    inside = evaluation_transform(data)(tall)[:, 2:-2, 2:-2]
    assert inside.abs().max() == 0


def test_without_augmentation_training_sees_what_evaluation_sees():
    data = DataConfig(image_size=32)
    still = train_transform(data, AugmentationConfig(enabled=False))
    assert torch.equal(still(picture()), evaluation_transform(data)(picture()))


@pytest.mark.parametrize("change", [{"affine_degrees": 30.0}, {"affine_translate": 0.3}, {"affine_scale": 0.5}])
def test_each_affine_setting_moves_the_image(change: dict[str, Any]):
    data = DataConfig(image_size=32)
    square = Image.new("RGB", (32, 32))
    square.paste("white", (4, 10, 20, 14))
    torch.manual_seed(0)
    still = train_transform(data, STILL)(square)
    moved = train_transform(data, dataclasses.replace(STILL, **change))(square)
    assert torch.equal(still, train_transform(data, STILL)(square))
    assert not torch.equal(still, moved)


@pytest.mark.parametrize(
    "policy",
    ["rand-m10-inc1", "rand-m9-mstd2.0-inc1", "rand-m1", "augmix-m10-w3", "original", "originalr", "v0", "v0r", "3a"],
)
def test_every_policy_survives_its_strongest_draws(policy: str):
    transform = train_transform(DataConfig(image_size=16), dataclasses.replace(STILL, auto_augment=policy))
    for seed in range(200):
        seed_global_generators(seed)
        assert transform(picture()).isfinite().all()


def test_keeping_no_bit_of_an_image_leaves_it_black():
    transform: Any = train_transform(DataConfig(image_size=16), AugmentationConfig(auto_augment="rand-m10-inc1"))
    policy = transform.transforms[1].transforms[0]
    operation = next(operation for operation in policy.ops if operation.name == "PosterizeIncreasing")
    operation.prob = 1.0
    assert operation(picture()).getextrema() == ((0, 0), (0, 0), (0, 0))
    operation.magnitude = 5
    assert operation(picture()).getextrema() == ((0, 192), (0, 192), (0, 192))


def test_an_unknown_policy_is_refused():
    with pytest.raises(InputError) as caught:
        train_transform(DataConfig(), AugmentationConfig(auto_augment="foo"))
    assert str(caught.value) == (
        "Expected one of timm's augmentation policies, such as 'rand-m9-mstd0.5-inc1' or 'augmix-m3-w3', "
        "but got 'foo' (Unknown AA policy foo): correct --augmentation.auto-augment, or give None."
    )


def test_mixing_is_off_unless_asked_for():
    assert batch_mixing(AugmentationConfig(), 10, 4) is None
    assert batch_mixing(AugmentationConfig(enabled=False, mixup=1.0), 10, 4) is None


def test_mixing_needs_an_even_batch():
    with pytest.raises(
        InputError, match="Expected an even batch on each process for mixup and cutmix, but got 3 images"
    ):
        batch_mixing(AugmentationConfig(cutmix=1.0), 10, 3)
