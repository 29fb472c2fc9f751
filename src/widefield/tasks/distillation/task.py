"""Distillation as the trainer sees it: another task's loss, and beside it what the teacher would have said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from widefield.data import Batch
from widefield.engine import Task
from widefield.tasks.distillation.config import DistillationConfig
from widefield.tasks.distillation.features import Answer
from widefield.tasks.distillation.losses import feature_loss, kd_loss, nkd_loss
from widefield.tasks.distillation.teacher import Teacher


class DistillationTask:
    """A task whose loss also holds the student to a teacher; validation is the task's own.

    Args:
        task: The classification task of the student alone.
        teacher: Sees the very images that the student sees, mixed ones too.
        config: Method and weights.
    """

    def __init__(self, task: Task, teacher: Teacher, config: DistillationConfig) -> None:
        self.monitor = task.monitor
        self.task, self.teacher, self.config = task, teacher, config

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return ``target_weight`` times the task's loss plus ``weight`` times that of the distillation.

        Args:
            model: The student, or for the method "feature" an `AdaptedStudent`; it is called once.
            batch: Images and targets.
        """
        student = _Recorder(model)
        own = self.task.loss(student, batch)
        expected = self.teacher(student.images)
        distilled = self._distilled(student.answer, expected, batch.targets)
        return self.config.target_weight * own + self.config.weight * distilled

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return the task's validation metrics of the student."""
        return self.task.evaluate(model, device)

    def _distilled(self, student: Answer, teacher: Answer, targets: Tensor) -> Tensor:
        config = self.config
        if config.method == "kd":
            return kd_loss(student.logits, teacher.logits, config.temperature)
        if config.method == "nkd":
            return nkd_loss(student.logits, teacher.logits, targets, config.temperature, config.non_target_weight)
        pairs = zip(student.features, teacher.features, strict=True)
        return torch.stack([feature_loss(mine, theirs) for mine, theirs in pairs]).mean()


class _Recorder(nn.Module):
    """Stands in for the student within another task's loss, and keeps what went in and came out."""

    images: Tensor
    answer: Answer

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        self.images = images
        self.answer = Answer(*output) if isinstance(output, tuple) else Answer(cast("Tensor", output))
        return self.answer.logits
