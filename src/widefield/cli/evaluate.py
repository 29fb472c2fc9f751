"""``widefield evaluate``: the score of a run or a checkpoint on a split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from widefield._core.checks import check
from widefield._core.errors import InputError, RunError
from widefield._core.plain_text import visible
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal, progress_bar
from widefield.data import evaluation_loader, open_split
from widefield.tasks.classification import evaluate, load_classifier


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Score a classifier on a split of the data it was trained on, or of other data with the same classes."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run folder or a checkpoint file."""

    form: Literal["branched", "merged"] = "branched"
    """Which of a run folder's two files."""

    split: Literal["auto", "train", "validation", "test"] = "auto"
    """auto is the split that the run was scored on: test where its data has one, else validation, else none."""

    root: str | None = None
    """Data in place of that of the run, as --data.root of widefield train."""

    batch_size: int | None = None
    """Images in a batch; that of the run if not given."""

    workers: int | None = None
    """Loader processes; that of the run if not given."""

    on_error: Literal["stop", "skip"] | None = None
    """What an image that cannot be decoded does; as in the run if not given."""

    model: str | None = None
    """Name of the model, for a published checkpoint that does not say it."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(EvaluateArguments, words, command="evaluate")
    console = Terminal()
    model, card = load_classifier(arguments.checkpoint, arguments.form, arguments.model)
    changes = {
        "root": arguments.root,
        "batch_size": arguments.batch_size,
        "workers": arguments.workers,
        "on_error": arguments.on_error,
    }
    data = replace(card.data, **{name: value for name, value in changes.items() if value is not None})
    split = card.split if arguments.split == "auto" else arguments.split
    if split is None:
        raise InputError(
            "a split to score",
            f"{arguments.checkpoint}, whose run held no images back (data.validation_fraction 0)",
            "name one with --split, and with --root the data that have it",
        )
    source = open_split(data, split)
    numbered = arguments.model is not None and len(source.classes) == len(card.classes)
    check(
        source.classes == card.classes or numbered,
        f"the classes of the checkpoint ({len(card.classes)}, first {card.classes[0]!r})",
        f"{len(source.classes)} in {data.root!r}, first {source.classes[0]!r}",
        "use data with the same class names",
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = evaluation_loader(source, data)
    with progress_bar(console) as progress:
        bar = progress.add_task("evaluating", total=loader.num_samples)
        result = evaluate(
            model.to(device), loader, len(card.classes), device, on_batch=lambda n: progress.advance(bar, n)
        )
    loader.close()
    if not math.isfinite(result.loss):
        raise RunError(
            f"Expected finite outputs of {arguments.checkpoint}, but got NaN or infinity, which have no score: "
            "use another checkpoint."
        )
    console.print(visible(f"{card.model.name} ({card.form}) on the {split} split of {data.root}"), soft_wrap=True)
    if loader.num_skipped:
        console.print(f"left out {loader.num_skipped} images that could not be decoded")
    console.print(f"images {result.count:,}\nloss   {result.loss:.6f}\ntop-1  {result.top1} %\ntop-5  {result.top5} %")
