"""What turns an RGB image into a normalised tensor, and what mixes the images of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps

from widefield._core.checks import check
from widefield._core.errors import InputError

if TYPE_CHECKING:
    from timm.data import Mixup

    from widefield.data.config import AugmentationConfig, DataConfig

Transform = Callable[[Image.Image], torch.Tensor]


def evaluation_transform(data: DataConfig) -> Transform:
    """Return the transform of evaluation and prediction: resize, centre crop, normalise.

    Args:
        data: Size, interpolation, crop and normalisation.

    Returns:
        A function from an RGB image to a float32 tensor (3, image_size, image_size).
    """
    from timm.data import create_transform

    transform: Any = create_transform(
        data.image_size,
        is_training=False,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        crop_pct=data.crop_fraction,
        crop_mode=data.crop_mode,
    )
    return transform


def train_transform(data: DataConfig, augmentation: AugmentationConfig) -> Transform:
    """Return the random transform of training; it draws from the global generators of Python, NumPy and torch.

    Args:
        data: Size, interpolation and normalisation.
        augmentation: How images are varied; if it is not enabled this is `evaluation_transform`.

    Returns:
        A function from an RGB image to a float32 tensor (3, image_size, image_size).

    Raises:
        InputError: If timm does not know the augmentation policy.
    """
    if not augmentation.enabled:
        return evaluation_transform(data)
    from timm.data import create_transform
    from torchvision.transforms import Compose, RandomAffine

    try:
        stages: Any = create_transform(
            data.image_size,
            is_training=True,
            scale=augmentation.crop_scale,
            ratio=augmentation.crop_ratio,
            hflip=augmentation.horizontal_flip,
            vflip=augmentation.vertical_flip,
            color_jitter=augmentation.color_jitter,
            auto_augment=augmentation.auto_augment,
            interpolation=data.interpolation,
            mean=data.mean,
            std=data.std,
            re_prob=augmentation.random_erasing,
            re_mode=augmentation.random_erasing_mode,
            re_count=augmentation.random_erasing_count,
            separate=True,
        )
    except (AssertionError, ValueError) as error:
        raise InputError(
            "one of timm's augmentation policies, such as 'rand-m9-mstd0.5-inc1' or 'augmix-m3-w3'",
            f"{augmentation.auto_augment!r} ({error})",
            "correct --augmentation.auto-augment, or give None",
        ) from error
    steps = list(stages)
    _allow_posterizing_to_nothing(steps[1].transforms)
    degrees, shift, scale = augmentation.affine_degrees, augmentation.affine_translate, augmentation.affine_scale
    if degrees or shift or scale:
        from torchvision.transforms import InterpolationMode

        steps.insert(
            1,
            RandomAffine(
                degrees,
                translate=(shift, shift) if shift else None,
                scale=(1 - scale, 1 + scale) if scale else None,
                interpolation=InterpolationMode.BILINEAR,
            ),
        )
    return Compose(steps)


def _allow_posterizing_to_nothing(steps: list[Any]) -> None:
    """Let timm's policies keep 0 bits of a channel, their strongest level, which Pillow 13 refuses to do."""
    from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment

    for step in steps:
        operations = list(step.ops) if isinstance(step, RandAugment | AugMixAugment) else []
        if isinstance(step, AutoAugment):
            operations = [operation for policy in step.policy for operation in policy]
        for operation in operations:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterized


def _posterized(image: Image.Image, bits: int, *, fillcolor: object, resample: object) -> Image.Image:
    # timm hands the same two keywords to every operation; this one has no use for them.
    return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new(image.mode, image.size)


def batch_mixing(augmentation: AugmentationConfig, classes: int, batch_size: int) -> Mixup | None:
    """Return timm's mixup and cutmix of whole batches, or None where both are off.

    Args:
        augmentation: Their strengths.
        classes: Number of classes.
        batch_size: Images in a batch of this process.

    Returns:
        A function of images (N, 3, H, W), changed in place, and class indices (N,), which returns the images and soft
        targets (N, classes); it draws from NumPy's global generator.

    Raises:
        InputError: If the batch has an odd number of images, which cannot be paired.
    """
    if not augmentation.enabled or not (augmentation.mixup or augmentation.cutmix):
        return None
    from timm.data import Mixup

    check(
        batch_size % 2 == 0,
        "an even batch on each process for mixup and cutmix",
        f"{batch_size} images",
        "change --data.batch-size, or set --augmentation.mixup and --augmentation.cutmix to 0",
    )
    return Mixup(
        mixup_alpha=augmentation.mixup,
        cutmix_alpha=augmentation.cutmix,
        prob=augmentation.mixup_prob,
        switch_prob=augmentation.mixup_switch_prob,
        label_smoothing=augmentation.label_smoothing,
        num_classes=classes,
    )
