"""``widefield merge``: a checkpoint to its inference form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from widefield._core.checks import check
from widefield.cli.arguments import parse
from widefield.reparam import merge
from widefield.tasks.classification import find_checkpoint, load_classifier, save_classifier


@dataclass(frozen=True, kw_only=True)
class MergeArguments:
    """Fold branches and norms of a checkpoint and state the error that this makes."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run folder or a checkpoint file in train form."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """File to write; NAME.merged.safetensors beside the checkpoint if not given. Never overwritten."""

    model: str | None = None
    """Name of the model, for a published checkpoint that does not say it."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(MergeArguments, words, command="merge")
    file = find_checkpoint(arguments.checkpoint, "branched")
    output = arguments.output or file.with_name(f"{file.stem}.merged.safetensors")
    check(not output.exists(), "a new file to write", f"{output}, which exists", "name another with --output")
    check(output.parent.is_dir(), "a folder to write to", f"{output.parent}, which does not exist", "make it first")
    model, card = load_classifier(file, "branched", arguments.model)
    check(card.form == "branched", "a checkpoint in train form", f"{file}, which is merged already", "use it as it is")
    report = merge(model)
    save_classifier(output, model.state_dict(), replace(card, form="merged"))
    console = Console(highlight=False)
    console.print(str(report))
    console.print(f"wrote {output}", soft_wrap=True)
