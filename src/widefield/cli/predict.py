"""``widefield predict``: the most probable classes of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from widefield._core.checks import check
from widefield._core.plain_text import visible
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal
from widefield.tasks.classification import load_classifier, predict


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Name the most probable classes of images."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""

    run: Path | None = None
    """A run folder (its merged network is used) or a checkpoint file; the newest run in runs/ if not given."""

    top: int = 5
    """How many classes to name."""

    model: str | None = None
    """Name of the model, for a published checkpoint that does not say it."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(PredictArguments, words, command="predict")
    check(len(arguments.images) > 0, "at least one image", "none", "name the files: widefield predict IMAGE ...")
    path = arguments.run or _newest_run()
    model, card = load_classifier(path, "merged", arguments.model)
    console = Terminal()
    console.print(visible(f"{card.model.name} ({card.form}) from {path}"), soft_wrap=True)
    for prediction in predict(model, card, arguments.images, arguments.top):
        table = Table(box=None, show_header=False, title=visible(prediction.image), title_justify="left")
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            table.add_row(visible(name), f"{100 * probability:.2f} %")
        console.print(table)


def _newest_run() -> Path:
    runs = [file.parent for file in Path("runs").glob("*/merged.safetensors")]
    check(bool(runs), "a finished run in runs/", "none", "train one with widefield train, or name one with --run")
    return max(runs, key=lambda path: (path / "merged.safetensors").stat().st_mtime)
