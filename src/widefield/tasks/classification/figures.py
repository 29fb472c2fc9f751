"""The figures of a run: curves and confusion matrix, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from widefield._core.plain_text import figure_text

_BLUE, _ORANGE = "#2563a8", "#d9722e"
_MOST_LABELS = 40
_LONGEST_LABEL = 32


def draw_curves(path: Path, history: Sequence[Mapping[str, float]], best_epoch: int, title: str) -> None:
    """Draw losses and accuracy over the epochs.

    Args:
        path: PNG to write.
        history: One row for each epoch, with epoch and train_loss, and if there was a validation val_loss and top1
            (percent).
        best_epoch: The epoch whose weights were kept; marked on the accuracy.
        title: Above the figure.
    """
    epochs = [row["epoch"] for row in history]
    is_scored = "top1" in history[0]
    figure = Figure(figsize=(9 if is_scored else 4.8, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if is_scored else 1, squeeze=False)[0]
    losses = panels[0]
    for key, colour, label in (("train_loss", _ORANGE, "training"), ("val_loss", _BLUE, "validation")):
        if key in history[0]:
            losses.plot(epochs, [row[key] for row in history], color=colour, label=label)
    losses.set(ylabel="cross-entropy loss", ylim=(0, None))
    losses.legend(frameon=False)
    if is_scored:
        accuracy = panels[1]
        accuracy.plot(epochs, [row["top1"] for row in history], color=_BLUE)
        best = next(row for row in history if row["epoch"] == best_epoch)
        accuracy.plot(best_epoch, best["top1"], "o", color=_BLUE)
        accuracy.annotate(
            f"{best['top1']:.2f} %",
            (best_epoch, best["top1"]),
            xytext=(0, -12),
            textcoords="offset points",
            ha="right" if best_epoch > np.mean(epochs) else "left",
            va="top",
        )
        accuracy.set(ylabel="validation top-1, %")
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(figure_text(title))
    figure.savefig(path, dpi=140)


def draw_confusion(path: Path, confusion: Tensor, classes: Sequence[str], title: str) -> None:
    """Draw the confusion matrix, rows normalised; numbers where they can be read.

    Args:
        path: PNG to write.
        confusion: (classes, classes) counts, true classes down the rows.
        classes: Their names; left out where there are more than 40.
        title: Above the figure.
    """
    counts = confusion.numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.28 * len(classes), 5, 11))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    if len(classes) <= _MOST_LABELS:
        labels = [figure_text(_short(name)) for name in classes]
        axes.set_xticks(range(len(classes)), labels, rotation=90 if max(map(len, labels)) > 3 else 0)
        axes.set_yticks(range(len(classes)), labels)
    if len(classes) <= 20:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="predicted class", ylabel="true class", title=figure_text(title))
    figure.savefig(path, dpi=140)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 3]}..."
