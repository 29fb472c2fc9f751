"""Distillation as the trainer sees it: another task's loss, and beside it what the teacher would have said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from widefield.data import Batch
from widefield.engine import Task
from widefield.tasks.distillation.config import DistillationConfig, Method
from widefield.tasks.distillation.features import Answer
from widefield.tasks.distillation.losses import feature_loss, kd_loss, nkd_loss
from widefield.tasks.distillation.teacher import Teacher


class DistillationTask:
    """A task whose loss also holds the student to a teacher; validation is the task's own.

    Args:
        task: The classification task of the student alone.
        teacher: Sees the very images that the student sees, mixed ones too.
        config: Methods and weights.
    """

    def __init__(self, task: Task, teacher: Teacher, config: DistillationConfig) -> None:
        self.monitor = task.monitor
        self.task, self.teacher, self.config = task, teacher, config

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of the task's loss and those of the methods, each times its weight.

        Args:
            model: The student, or with the method "feature" an `AdaptedStudent`; it is called once.
            batch: Images and targets.
        """
        student = _Recorder(model)
        own = self.task.loss(student, batch)
        expected = self.teacher(student.images)
        # A weight of zero keeps its part in the graph: DDP waits for a gradient of every parameter.
        total = self.config.target_weight * own
        for method, weight in self.config.weights.items():
            total = total + weight * self._distilled(method, student.answer, expected, batch.targets)
        return total

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return the task's validation metrics of the student."""
        return self.task.evaluate(model, device)

    def _distilled(self, method: Method, student: Answer, teacher: Answer, targets: Tensor) -> Tensor:
        config = self.config
        if method == "kd":
            return kd_loss(student.logits, teacher.logits, config.temperature)
        if method == "nkd":
            return nkd_loss(student.logits, teacher.logits, targets, config.nkd_temperature, config.non_target_weight)
        pairs = zip(student.features, teacher.features, strict=True)
        losses = [feature_loss(mine, theirs, config.feature_loss, config.feature_beta) for mine, theirs in pairs]
        return torch.stack(losses).mean()


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
