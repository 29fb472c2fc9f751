"""A small teacher on disk, and the run of a student on the digits: what the tests of distillation share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from support.random_statistics import randomise

from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import EmaConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from widefield.tasks.classification import ClassifierCard, ModelConfig, RunConfig, save_classifier
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.distillation import DistillationConfig

DIGITS = tuple("0123456789")
DATA = DataConfig(root="embedded:digits", image_size=32, batch_size=256, workers=0, crop_fraction=1.0)
TEACHER = ModelConfig(name="replknet_nano", kernel_sizes=(13, 13, 13, 13))


def write_teacher(path: Path, *, classes: tuple[str, ...] = DIGITS, **data: Any) -> Path:
    """Write a large-kernel teacher of random weights with a card."""
    torch.manual_seed(5)
    network = randomise(make_classifier(TEACHER, len(classes)))
    card = ClassifierCard(model=TEACHER, data=replace(DATA, **data), classes=classes)
    save_classifier(path, network.state_dict(), card)
    return path


def student_run(teacher: Path, *, ema: float | None = None, trainer: dict[str, Any] | None = None, **distillation: Any):
    """Return the config of a small-kernel student: one epoch of two updates, mixed images, accumulation."""
    return RunConfig(
        model=ModelConfig(name="replknet_nano", kernel_sizes=(7, 7, 7, 7), drop_path_rate=0.1),
        data=DATA,
        augmentation=AugmentationConfig(auto_augment=None, random_erasing=0.0, mixup=0.2, mixup_prob=0.5),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup_epochs=0),
        ema=EmaConfig(decay=ema),
        trainer=TrainerConfig(
            **{
                "epochs": 1,
                "accumulate_steps": 2,
                "device": "cpu",
                "tensorboard": False,
                "log_every_steps": 1,
                "checkpoint_every_steps": 1,
                **(trainer or {}),
            }
        ),
        distillation=DistillationConfig(teacher=str(teacher), **distillation),
    )
