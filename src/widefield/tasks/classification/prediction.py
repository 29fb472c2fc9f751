"""The most probable classes of single images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from widefield._core.checks import check
from widefield._core.errors import RunError
from widefield.data import evaluation_transform, read_image
from widefield.tasks.classification.card import ClassifierCard


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The most probable classes of one image, best first."""

    image: Path
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


@torch.no_grad()
def predict(model: nn.Module, card: ClassifierCard, images: Sequence[Path], top: int = 5) -> list[Prediction]:
    """Classify images, one at a time, prepared as in evaluation.

    Args:
        model: A classifier in evaluation mode.
        card: What it says of itself.
        images: Files.
        top: How many classes to return; all of them if there are fewer.

    Returns:
        One prediction for each image, in order.

    Raises:
        InputError: If `top` is not positive, or a file is missing or cannot be decoded.
        RunError: If the network gives numbers that are not finite.
    """
    check(top >= 1, "at least one class to return", f"{top}", "use a number from 1")
    transform = evaluation_transform(card.data)
    device = next(model.parameters()).device
    predictions: list[Prediction] = []
    for path in images:
        batch = transform(read_image(path)).unsqueeze(0).to(device)
        logits = model(batch).float()
        if not bool(torch.isfinite(logits).all()):
            raise RunError(
                f"Expected finite outputs for {str(path)!r}, but got NaN or infinity: the weights are too large for "
                "this network, use another checkpoint."
            )
        values, indices = logits.softmax(1)[0].topk(min(top, len(card.classes)))
        predictions.append(
            Prediction(
                image=path,
                classes=tuple(card.classes[index] for index in indices.tolist()),
                probabilities=tuple(values.tolist()),
            )
        )
    return predictions
