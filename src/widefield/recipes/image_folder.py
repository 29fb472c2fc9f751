"""A sound default for a few thousand photos of your own on one machine.

Source: ours.
Command: ``widefield train image_folder --data.root YOUR_FOLDER`` (one folder of images for each class; a zip or tar of
that; or train and val parts).
"""

from __future__ import annotations

from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import EmaConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from widefield.tasks.classification import ModelConfig, RunConfig


def image_folder() -> RunConfig:
    """RepLKNet-nano from scratch on your own images at 128 px."""
    return RunConfig(
        recipe="image_folder",
        model=ModelConfig(name="replknet_nano", drop_path_rate=0.05),
        data=DataConfig(root="images", image_size=128, batch_size=64),
        augmentation=AugmentationConfig(
            crop_scale=(0.35, 1.0),
            auto_augment=None,
            color_jitter=0.3,
            random_erasing=0.0,
        ),
        optimizer=OptimizerConfig(lr=4e-3, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=2),
        ema=EmaConfig(decay=0.995, warmup=True),
        trainer=TrainerConfig(epochs=33, clip_norm=5.0),
    )
