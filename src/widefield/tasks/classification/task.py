"""Classification as the trainer sees it: a loss, and where there are images for it a score to choose weights by."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widefield.data import Batch, ImageLoader
from widefield.tasks.classification.evaluation import evaluate


class ClassificationTask:
    """Cross-entropy, and top-1 accuracy on the validation split.

    Args:
        validation: This process's share of the validation split; None where there is none, and so no score.
        num_classes: Outputs.
        label_smoothing: Share of the target spread over all classes; mixed targets have theirs already.
    """

    def __init__(self, validation: ImageLoader | None, num_classes: int, label_smoothing: float) -> None:
        self.monitor = None if validation is None else "top1"
        self.validation = validation
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch; its targets are classes, or distributions if they were mixed."""
        smoothing = 0.0 if batch.targets.is_floating_point() else self.label_smoothing
        return F.cross_entropy(model(batch.images).float(), batch.targets, label_smoothing=smoothing)

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Return the metrics of the whole validation split, the same on every process."""
        assert self.validation is not None
        return evaluate(model, self.validation, self.num_classes, device, across_ranks=True).metrics()
