"""``widefield train [RECIPE]``: a run from a recipe, a config file, or where an earlier one stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from widefield._core.checks import check
from widefield._core.memory import keep_freed_memory
from widefield.cli.arguments import parse
from widefield.cli.progress import RichReporter
from widefield.engine.run_folder import is_main_rank
from widefield.recipes import RECIPES, recipe
from widefield.reparam import MergeReport
from widefield.tasks.classification import RunConfig, RunSummary, read_config, train


@dataclass(frozen=True, kw_only=True)
class TrainArguments(RunConfig):
    """Train a network, merge it with a certificate, evaluate both forms, and write a run folder.

    With no recipe: the quick start. Recipes: widefield train --recipes.
    """

    output: Path | None = None
    """Run folder, new or empty; runs/RECIPE-DATE-TIME if not given."""

    config: Path | None = None
    """Start from the config.yaml of an earlier run in place of a recipe."""

    resume: Path | None = None
    """Take up the run in this folder at its newest checkpoint, with the config that lies there."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    if list(words) == ["--recipes"]:
        _print_recipes()
        return
    name, words = (words[0], words[1:]) if words and not words[0].startswith("-") else ("quickstart", words)
    base = recipe(name)
    early = {option: _value_of(words, option) for option in ("--config", "--resume")}
    check(
        not (early["--config"] and early["--resume"]),
        "one of --config and --resume",
        "both",
        "--resume reads the config in the run folder by itself",
    )
    if early["--config"]:
        base = read_config(Path(early["--config"]))
    elif early["--resume"]:
        base = read_config(Path(early["--resume"]) / "config.yaml")
    default = TrainArguments(**{field.name: getattr(base, field.name) for field in fields(RunConfig)})
    arguments = parse(TrainArguments, words, command=f"train {name}", default=default)
    config = RunConfig(**{field.name: getattr(arguments, field.name) for field in fields(RunConfig)})
    path = arguments.resume or arguments.output or Path("runs") / f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"

    console = Console(highlight=False, quiet=not is_main_rank())
    console.print(f"[bold]{config.recipe}[/]: {config.model.name} on {config.data.root}, run folder {path}")
    reporter = RichReporter(console)
    keep_freed_memory()
    try:
        result = train(config, path, resume=arguments.resume is not None, reporter=reporter)
    finally:
        reporter.stop()
    if result is not None:
        _print_result(console, path, *result)


def _value_of(words: Sequence[str], option: str) -> str | None:
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1]
    return None


def _print_recipes() -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, function in RECIPES.items():
        table.add_row(f"[bold]{name}[/]", (function.__doc__ or "").strip().splitlines()[0])
    console.print(table)


def _print_result(console: Console, path: Path, summary: RunSummary, report: MergeReport) -> None:
    console.print(f"\ndata: {summary.data}", soft_wrap=True)
    console.print(
        f"trained {summary.epochs} epochs in {summary.seconds:.0f} s; kept epoch {summary.best_epoch} "
        f"(validation top-1 {summary.validation_top1:.2f} %, last epoch {summary.last_validation_top1:.2f} %)"
    )
    if summary.skipped_images:
        plural = "" if summary.skipped_images == 1 else "s"
        console.print(f"[yellow]left out {summary.skipped_images} image{plural} that could not be decoded[/]")
    console.print("\n[bold]certificate of the merge[/]")
    console.print(str(report))
    differing = summary.merged_prediction_differences
    console.print(
        f"predictions that differ on the {summary.split} split: {differing} of {summary.images:,}", soft_wrap=True
    )
    table = Table(title=f"{summary.split} split, {summary.images:,} images", title_justify="left")
    for heading in ("form", "parameters", "top-1", "file"):
        table.add_column(heading, justify="left" if heading in ("form", "file") else "right")
    table.add_row("branched", f"{summary.parameters:,}", f"{summary.top1:.2f} %", "model.safetensors")
    table.add_row("merged", f"{summary.merged_parameters:,}", f"{summary.merged_top1:.2f} %", "merged.safetensors")
    console.print(table)
    console.print(f"\nin {path}: " + ", ".join(sorted(entry.name for entry in path.iterdir())), soft_wrap=True)
    console.print(
        f"\nnext:\n  widefield evaluate {path}\n  widefield predict IMAGE --run {path}"
        "\n  widefield train image_folder --data.root YOUR_FOLDER",
        soft_wrap=True,
    )
