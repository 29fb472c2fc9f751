"""Tiny photos and a tiny network on them: what the tests of whole runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import EmaConfig, LogReporter, OptimizerConfig, ScheduleConfig, TrainerConfig
from widefield.tasks.classification import ModelConfig, RunConfig


class PowerCut(Exception):
    pass


class CutAt(LogReporter):
    """Ends the process's part of a run after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, epoch: int, step: int, loss: float, lr: float) -> None:
        if step == self.step:
            raise PowerCut


def write_photo(path: Path, seed: int) -> None:
    """Write a noisy image of 12 x 12 whose file has a size of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 40 + 8 * (seed % 20), (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_photos(root: Path, classes: tuple[str, ...] = ("ant", "bee"), count: int = 10) -> Path:
    """Write photos in a folder for each class, `root/ant/0.png` and so on, and return the root."""
    for place, name in enumerate(classes):
        for number in range(count):
            write_photo(root / name / f"{number}.png", 100 * place + number)
    return root


def photo_run(root: Path, *, data: dict[str, Any] | None = None, ema: float | None = None, **trainer: Any) -> RunConfig:
    """Return a run of two epochs on photos, with a checkpoint after every update."""
    return RunConfig(
        model=ModelConfig(name="test_resnet"),
        data=DataConfig(
            **{"root": str(root), "image_size": 32, "batch_size": 4, "workers": 0, "crop_fraction": 1.0, **(data or {})}
        ),
        augmentation=AugmentationConfig(auto_augment=None, random_erasing=0.0, color_jitter=0.0),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup_epochs=0),
        ema=EmaConfig(decay=ema),
        trainer=TrainerConfig(
            **{
                "epochs": 2,
                "device": "cpu",
                "tensorboard": False,
                "log_every_steps": 1,
                "checkpoint_every_steps": 1,
                **trainer,
            }
        ),
    )
