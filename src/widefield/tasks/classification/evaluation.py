"""Scores of a classifier on a split, exact: they are counted, not averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.data import ImageLoader


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a classifier did on a split."""

    confusion: Tensor
    """(classes, classes), int64: how often the class of the row was taken for that of the column."""
    top5_correct: int
    """Images whose class was among the five (or all, if fewer) most probable."""
    loss_sum: float
    """Sum of the cross-entropy over images."""
    predictions: Tensor
    """(n,), int64: the most probable class of each image of this process."""
    indices: Tensor
    """(n,), int64: place of each of these images in the source."""

    @property
    def count(self) -> int:
        """Images."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Images classified right, in percent."""
        return 100 * int(self.confusion.trace()) / self.count

    @property
    def top5(self) -> float:
        """Images whose class is among the five most probable, in percent."""
        return 100 * self.top5_correct / self.count

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return self.loss_sum / self.count

    def metrics(self) -> dict[str, float]:
        """Return validation loss (``val_loss``), ``top1`` and ``top5``."""
        return {"val_loss": self.loss, "top1": self.top1, "top5": self.top5}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: ImageLoader,
    num_classes: int,
    device: torch.device,
    *,
    across_ranks: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run a classifier over a split, in float32 and evaluation mode.

    Args:
        model: Images (N, 3, H, W) -> logits (N, num_classes). Its mode is restored afterwards.
        loader: The split, or this process's share of it.
        num_classes: Outputs.
        device: Where the model lies.
        across_ranks: Whether to add up the counts of all processes.
        on_batch: Called after each batch with the number of its images, for progress.

    Returns:
        The counts, and this process's predictions.

    Raises:
        InputError: If there are no images.
    """
    was_training = model.training
    model.eval()
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    predictions, indices = [], []
    for batch in loader.epoch(0):
        targets = batch.targets.to(device)
        logits = model(batch.images.to(device)).float()
        ranked = logits.topk(min(5, num_classes), dim=1).indices
        confusion += torch.bincount(targets * num_classes + ranked[:, 0], minlength=num_classes * num_classes)
        sums[0] += F.cross_entropy(logits, targets, reduction="sum").double()
        sums[1] += (ranked == targets[:, None]).sum()
        predictions.append(ranked[:, 0].cpu())
        indices.append(batch.indices)
        if on_batch is not None:
            on_batch(len(batch))
    model.train(was_training)
    if across_ranks and dist.is_initialized():
        dist.all_reduce(confusion)
        dist.all_reduce(sums)
    check(bool(confusion.any()), "images to evaluate", "none that can be read", "check the data")
    return Evaluation(
        confusion=confusion.reshape(num_classes, num_classes).cpu(),
        top5_correct=int(sums[1]),
        loss_sum=float(sums[0]),
        predictions=torch.cat(predictions) if predictions else torch.empty(0, dtype=torch.int64),
        indices=torch.cat(indices) if indices else torch.empty(0, dtype=torch.int64),
    )
