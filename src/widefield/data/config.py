"""What to read and how to augment it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from widefield._core.checks import check, check_range, check_seed
from widefield.data.image import MOST_PIXELS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LARGEST_SIDE = math.isqrt(MOST_PIXELS)
"""Of square images, in pixels."""

_MOST_IMAGES = 1 << 24
_MOST_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are, and how they become batches."""

    root: str = "embedded:digits"
    """A folder, a .zip, a .tar, 'embedded:digits', 'wds:/shards/{00..03}.tar', 'hfds:folder-or-name' or
    'torch/cifar10:/folder'."""
    image_size: int = 224
    """Height and width of the images in a batch, in pixels."""
    batch_size: int = 64
    """Images in one batch over all processes, before gradient accumulation."""
    workers: int = 2
    """Loader processes of each rank; 0 reads in the main process."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an image that cannot be decoded does: stop the run, or be left out and counted."""
    validation_fraction: float = 0.2
    """Share of the training images of each class kept for validation, where the data has no validation split; with 0
    all of them train, there is no score to choose by, and the last weights are kept."""
    split_seed: int = 0
    """Seed of that split."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """How images are resized."""
    crop_fraction: float = 0.9
    """Share of the resized image that the centre crop of evaluation keeps."""
    crop_mode: Literal["center", "squash"] = "center"
    """How evaluation resizes before that crop: the short side, or both sides, so that the whole image becomes a
    square and its proportions are lost."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each channel, subtracted from values in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each channel, divided by after the mean."""

    def __post_init__(self) -> None:
        """Refuse values that no data set could make sense of."""
        _check_at_least("image_size", self.image_size, 1)
        _check_at_least("batch_size", self.batch_size, 1)
        _check_at_least("workers", self.workers, 0)
        check_range("image_size", self.image_size, 1, LARGEST_SIDE, "lower it: no image decodes to more pixels")
        check_range("batch_size", self.batch_size, 1, _MOST_IMAGES, "lower it")
        check_range("workers", self.workers, 0, _MOST_WORKERS, "use about as many as the machine has cores")
        check_seed("split_seed", self.split_seed)
        for name in ("mean", "std"):
            for value in getattr(self, name):
                check_range(f"each {name}", value, -math.inf, math.inf)
        check(
            0 <= self.validation_fraction < 1,
            "validation_fraction between 0 and 1",
            f"{self.validation_fraction}",
            "give the share of the images to keep for validation, such as 0.2, or 0 to train on all of them",
        )
        check(
            0 < self.crop_fraction <= 1,
            "crop_fraction above 0 and at most 1",
            f"{self.crop_fraction}",
            "give the share of the image to keep, such as 0.9",
        )
        check(
            min(self.std) > 0,
            "a positive std for each channel",
            f"{self.std}",
            "give the standard deviations of values in 0..1",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """How training images are varied."""

    enabled: bool = True
    """Whether to augment at all; without it training images are treated as in evaluation."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that a random crop keeps."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio (width / height) of a random crop."""
    horizontal_flip: float = 0.5
    """Probability of mirroring left and right."""
    vertical_flip: float = 0.0
    """Probability of mirroring top and bottom."""
    color_jitter: float = 0.4
    """Strength of random brightness, contrast and saturation; timm leaves it out where auto_augment is on."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's name of an augmentation policy, or None."""
    random_erasing: float = 0.25
    """Probability of overwriting random rectangles of an image, after normalisation."""
    random_erasing_mode: Literal["pixel", "rand", "const"] = "pixel"
    """With what: a normal draw for each pixel and channel, as published, one for each channel, or zeros."""
    random_erasing_count: int = 1
    """Largest number of these rectangles; how many is drawn from 1 to it, each up to a third of the image in area over
    this number."""
    mixup: float = 0.0
    """Alpha of mixup; 0 is off."""
    cutmix: float = 0.0
    """Alpha of cutmix; 0 is off."""
    mixup_prob: float = 1.0
    """Probability that a batch is mixed, where mixup or cutmix is on."""
    mixup_switch_prob: float = 0.5
    """Probability of cutmix instead of mixup, where both are on."""
    label_smoothing: float = 0.1
    """Smoothing of the soft targets that mixup and cutmix make; class indices are left to the loss."""
    affine_degrees: float = 0.0
    """Largest random rotation, in degrees either way."""
    affine_translate: float = 0.0
    """Largest random shift, as a share of the image."""
    affine_scale: float = 0.0
    """Largest random change of scale, as a share (0.1: between 0.9 and 1.1)."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be drawn from."""
        for name in (
            "horizontal_flip",
            "vertical_flip",
            "random_erasing",
            "mixup_prob",
            "mixup_switch_prob",
            "label_smoothing",
            "affine_translate",
        ):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name} between 0 and 1", f"{value}", "give a share, such as 0.1")
        for name in ("color_jitter", "mixup", "cutmix", "affine_degrees"):
            _check_at_least(name, getattr(self, name), 0)
            check_range(name, getattr(self, name), 0, math.inf)
        _check_at_least("random_erasing_count", self.random_erasing_count, 1)
        check(
            0 <= self.affine_scale < 1,
            "affine_scale of at least 0 and below 1",
            f"{self.affine_scale}",
            "give the change of scale, such as 0.1",
        )
        check(
            0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
            "crop_scale as two rising shares above 0 and at most 1",
            f"{self.crop_scale}",
            "give the smallest and largest share, such as 0.08 1.0",
        )
        check(
            0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf,
            "crop_ratio as two rising positive numbers",
            f"{self.crop_ratio}",
            "give the smallest and largest ratio, such as 0.75 1.33",
        )


def _check_at_least(name: str, value: float, least: int) -> None:
    check(value >= least, f"{name} of at least {least}", f"{value}", f"raise it to {least} or more")
