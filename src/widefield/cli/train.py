"""``widefield train [RECIPE]``: a run from a recipe, a config file, or where an earlier one stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from widefield._core.checks import check
from widefield._core.errors import WidefieldError
from widefield._core.memory import keep_freed_memory
from widefield._core.plain_text import visible
from widefield.cli.arguments import parse
from widefield.cli.progress import RichReporter
from widefield.cli.terminal import Terminal, styled
from widefield.cli.train_report import print_changes, print_estimate, print_plan, print_recipes
from widefield.data import open_splits
from widefield.engine import make_accelerator
from widefield.engine.run_folder import is_main_rank
from widefield.recipes import GROUPS, recipe
from widefield.reparam import MergeReport
from widefield.sparsity.config import SparsityConfig
from widefield.tasks.classification import RunConfig, RunSummary, read_config, train
from widefield.tasks.classification.estimate import estimate
from widefield.tasks.classification.plan import plan_for_memory
from widefield.tasks.classification.scaling import Change, scale_to_batch

if TYPE_CHECKING:
    from accelerate import Accelerator

_REFUSED = 2


@dataclass(frozen=True, kw_only=True)
class TrainArguments(RunConfig):
    """Train a network, merge it with a certificate, evaluate both forms, and write a run folder.

    With no recipe: the quick start. Recipes: widefield train --recipes.
    A recipe without sparsity becomes sparse by any --sparsity option.
    Several processes: torchrun --nproc-per-node 8 -m widefield train RECIPE ...
    """

    sparsity: tyro.conf.AvoidSubcommands[SparsityConfig | None] = None
    """Sparse training. Any --sparsity.FIELD turns it on in a dense recipe; --sparsity None turns it off."""

    scale_to_batch: int | None = None
    """Run the recipe with so many images behind each update: learning rates in proportion, epochs as they are."""

    memory_limit: float | None = None
    """Gigabytes of one process: measure which batch fits, with or without gradient checkpointing, and accumulate."""

    dry_run: bool = False
    """Show config, sizes, and memory and time from ten real steps; write nothing."""

    output: Path | None = None
    """Run folder, new or empty; runs/RECIPE-DATE-TIME if not given."""

    config: Path | None = None
    """Start from the config.yaml of an earlier run in place of a recipe."""

    resume: Path | None = None
    """Take up the run in this folder at its newest checkpoint, with the config that lies there. Other options may
    change only what no weight depends on, such as --data.workers, and raise --trainer.epochs."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    if list(words) == ["--recipes"]:
        print_recipes(Terminal(), GROUPS)
        return
    name, words = (words[0], words[1:]) if words and not words[0].startswith("-") else ("quickstart", words)
    words = _with_values(list(words))
    base, words = _with_sparsity(_base(name, words), words)
    arguments = _parsed(base, words, name)
    changes: tuple[Change, ...] = ()
    batch_before = base.update_batch
    if arguments.scale_to_batch is not None:
        steps = arguments.trainer.accumulate_steps if _value_of(words, "--trainer.accumulate-steps") else None
        base, changes = scale_to_batch(base, arguments.scale_to_batch, steps)
        arguments = _parsed(base, words, name)
        check(
            arguments.update_batch == arguments.scale_to_batch,
            f"--data.batch-size times --trainer.accumulate-steps to be --scale-to-batch {arguments.scale_to_batch}",
            f"{arguments.data.batch_size} times {arguments.trainer.accumulate_steps}",
            "leave --data.batch-size out",
        )
    check(
        arguments.resume is None or (arguments.memory_limit is None and not arguments.dry_run),
        "--resume without --memory-limit and --dry-run",
        "both",
        "a run is taken up with the settings that it began with",
    )
    config = RunConfig(**{field.name: getattr(arguments, field.name) for field in fields(RunConfig)})
    console = Terminal(quiet=not is_main_rank())
    if changes:
        print_changes(console, changes, batch_before, base.update_batch)
    if arguments.memory_limit is not None or arguments.dry_run:
        accelerator = make_accelerator(config.trainer)
        if arguments.memory_limit is not None:
            config = _within_memory(config, arguments.memory_limit, accelerator, console)
        if arguments.dry_run:
            _print_dry_run(config, accelerator, console)
            return
    _train(config, arguments, console)


def _train(config: RunConfig, arguments: TrainArguments, console: Console) -> None:
    path = arguments.resume or arguments.output or Path("runs") / f"{config.recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    where = f"{config.model.name} on {config.data.root}, run folder {path}"
    console.print(Text.assemble((visible(config.recipe), "bold"), f": {visible(where)}"))
    reporter = RichReporter(console)
    keep_freed_memory()
    try:
        result = train(config, path, resume=arguments.resume is not None, reporter=reporter)
    finally:
        reporter.stop()
    if result is not None:
        _print_result(console, path, *result)


def _parsed(base: RunConfig, words: Sequence[str], name: str) -> TrainArguments:
    default = TrainArguments(**{field.name: getattr(base, field.name) for field in fields(RunConfig)})
    return parse(TrainArguments, words, command=f"train {name}", default=default)


def _base(name: str, words: Sequence[str]) -> RunConfig:
    """Return what the options change: a recipe, or the config of an earlier run."""
    base = recipe(name)
    early = {option: _value_of(words, option) for option in ("--config", "--resume")}
    check(
        not (early["--config"] and early["--resume"]),
        "one of --config and --resume",
        "both",
        "--resume reads the config in the run folder by itself",
    )
    if early["--config"]:
        return read_config(Path(early["--config"]))
    if early["--resume"]:
        return read_config(Path(early["--resume"]) / "config.yaml")
    return base


def _with_values(words: list[str]) -> list[str]:
    """Return the words with the value of ``--dry-run``, which alone may be left out."""
    spelled: list[str] = []
    for index, word in enumerate(words):
        spelled.append(word)
        if word == "--dry-run" and words[index + 1 : index + 2] not in (["True"], ["False"]):
            spelled.append("True")
    return spelled


def _with_sparsity(base: RunConfig, words: list[str]) -> tuple[RunConfig, list[str]]:
    """Return what the options change with sparsity on or off as they say, and the words without ``--sparsity``."""
    switch = _value_of(words, "--sparsity")
    if switch is not None or "--sparsity" in words:
        check(
            switch in ("None", "none"),
            "--sparsity None, which turns it off",
            f"--sparsity {switch or ''}".strip(),
            "use --sparsity.sparsity 0.4 for a share, and --sparsity.FIELD for the rest",
        )
        index = next(index for index, word in enumerate(words) if word.split("=")[0] == "--sparsity")
        words = words[:index] + words[index + (1 if "=" in words[index] else 2) :]
        return replace(base, sparsity=None), words
    # The help shows them too, with the values that they have once one of them is given.
    if base.sparsity is None and any(word.startswith("--sparsity.") or word in ("-h", "--help") for word in words):
        base = replace(base, sparsity=SparsityConfig())
    return base, words


def _value_of(words: Sequence[str], option: str) -> str | None:
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1]
    return None


def _within_memory(config: RunConfig, limit: float, accelerator: Accelerator, console: Console) -> RunConfig:
    """Return the run with the plan that the main process measures for all."""
    limit_bytes, world_size = round(limit * 1e9), accelerator.num_processes
    chosen = torch.zeros(3, dtype=torch.int64, device=accelerator.device)
    failure: WidefieldError | None = None
    if accelerator.is_main_process:
        try:
            classes = len(open_splits(config.data).train.classes)
            plan = plan_for_memory(config, limit_bytes, classes, device=str(accelerator.device), world_size=world_size)
        except WidefieldError as error:
            failure = error
        else:
            print_plan(console, plan, config.update_batch)
            chosen[:] = torch.tensor([plan.micro_batch, plan.accumulate_steps, plan.grad_checkpointing])
    if world_size > 1:
        dist.broadcast(chosen, 0)
    if failure is not None:
        raise failure
    micro_batch, accumulate_steps, checkpoints = chosen.tolist()
    if micro_batch == 0:
        # The main process tells why.
        raise SystemExit(_REFUSED)
    return replace(
        config,
        data=replace(config.data, batch_size=micro_batch * world_size),
        trainer=replace(config.trainer, accumulate_steps=accumulate_steps),
        model=replace(config.model, grad_checkpointing=bool(checkpoints)),
    )


def _print_dry_run(config: RunConfig, accelerator: Accelerator, console: Console) -> None:
    if accelerator.is_main_process:
        device = str(accelerator.device)
        print_estimate(console, config, estimate(config, device=device, world_size=accelerator.num_processes), device)
    accelerator.wait_for_everyone()


def _print_result(console: Console, path: Path, summary: RunSummary, report: MergeReport) -> None:
    console.print(f"\ndata: {visible(summary.data)}", soft_wrap=True)
    if summary.validation_top1 is None:
        kept = "kept the weights of the last, since no images were held back for validation"
    else:
        kept = (
            f"kept epoch {summary.best_epoch} (validation top-1 {summary.validation_top1:.2f} %, "
            f"last epoch {summary.last_validation_top1:.2f} %)"
        )
    console.print(f"trained {summary.epochs} epochs in {summary.seconds:.0f} s; {kept}", soft_wrap=True)
    if summary.skipped_images:
        plural = "" if summary.skipped_images == 1 else "s"
        told = f"left out {summary.skipped_images} image{plural} that could not be decoded"
        console.print(styled(told, "yellow"))
    console.print(styled("\ncertificate of the merge", "bold"))
    console.print(str(report))
    if summary.split is None:
        title = "no split to score: all images trained"
    else:
        title = f"{summary.split} split, {summary.images:,} images"
        differing = summary.merged_prediction_differences
        console.print(
            f"predictions that differ on the {summary.split} split: {differing} of {summary.images:,}", soft_wrap=True
        )
    table = Table(title=title, title_justify="left")
    for heading in ("form", "parameters", "top-1", "file"):
        table.add_column(heading, justify="left" if heading in ("form", "file") else "right")
    table.add_row("branched", f"{summary.parameters:,}", _percent(summary.top1), "model.safetensors")
    table.add_row("merged", f"{summary.merged_parameters:,}", _percent(summary.merged_top1), "merged.safetensors")
    console.print(table)
    names = sorted(visible(entry.name) for entry in path.iterdir() if not entry.name.startswith("."))
    console.print(f"\nin {visible(path)}: {', '.join(names)}", soft_wrap=True)
    evaluate = f"widefield evaluate {visible(path)}" + (" --root DATA --split test" if summary.split is None else "")
    console.print(
        f"\nnext:\n  {evaluate}\n  widefield predict IMAGE --run {visible(path)}"
        "\n  widefield train image_folder --data.root YOUR_FOLDER",
        soft_wrap=True,
    )


def _percent(score: float | None) -> str:
    return "not scored" if score is None else f"{score:.2f} %"
