"""``widefield sparsity``: what is left of a sparsely trained network, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table

from widefield._core.checks import check
from widefield._core.files import write_atomically
from widefield._core.plain_text import visible
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal
from widefield.reparam import fold
from widefield.sparsity import SparsityReport, compact, save_sparse, sparsity_report
from widefield.tasks.classification import find_checkpoint, load_classifier


@dataclass(frozen=True, kw_only=True)
class SparsityArguments:
    """Count what is not zero: parameters and multiply-accumulates of every layer, and what the zeros are good for."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run folder or a checkpoint file."""

    model: str | None = None
    """Name of the model, for a published checkpoint that does not say it."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file for the counts of every layer; never overwritten."""

    pack: Path | None = None
    """File to write the weights to in sparse form, for widefield.sparsity.load_sparse; never overwritten."""

    compact: bool = False
    """Merge it in memory, take out what is zero throughout, and say what that saved."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(SparsityArguments, words, command="sparsity")
    for path in (arguments.output, arguments.pack):
        if path is not None:
            check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
            check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")
    file = find_checkpoint(arguments.checkpoint, "branched")
    model, card = load_classifier(file, "branched", arguments.model)
    size = card.data.image_size
    example = torch.zeros(1, 3, size, size)
    report = sparsity_report(model, example)
    console = Terminal()
    _print(console, report, size)
    if arguments.output is not None:
        text = json.dumps({"rows": [asdict(row) for row in report.rows], "other_macs": report.other_macs}, indent=1)
        write_atomically(arguments.output, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
        console.print(f"wrote {visible(arguments.output)}", soft_wrap=True)
    if arguments.pack is not None:
        stored = save_sparse(arguments.pack, model.state_dict())
        sizes = f"{stored.sparse_bytes / 1e6:.1f} MB in place of {stored.dense_bytes / 1e6:.1f} MB"
        console.print(
            f"wrote {visible(arguments.pack)}: {sizes}, "
            f"{stored.sparse_tensors} of {stored.tensors} tensors in sparse form",
            soft_wrap=True,
        )
    if arguments.compact:
        fold(model)
        console.print(compact(model, example).summary, soft_wrap=True)


def _print(console: Console, report: SparsityReport, size: int) -> None:
    table = Table(title=f"tensors of two or more dimensions; MACs of one {size} x {size} image", title_justify="left")
    for heading in ("tensor", "shape", "parameters", "not zero", "density", "MACs", "not zero"):
        table.add_column(heading, justify="left" if heading in ("tensor", "shape") else "right")
    for row in report.rows:
        if len(row.shape) > 1:
            table.add_row(
                row.name,
                "x".join(map(str, row.shape)),
                f"{row.parameters:,}",
                f"{row.nonzeros:,}",
                f"{100 * row.density:.1f} %",
                f"{row.macs:,}",
                f"{row.nonzero_macs:,}",
            )
    console.print(table)
    console.print(
        f"parameters {report.parameters:,}, not zero {report.nonzeros:,} "
        f"({100 * report.nonzeros / max(report.parameters, 1):.1f} %)"
    )
    console.print(
        f"MACs {report.macs:,}, with weights that are not zero {report.nonzero_macs:,}: an ordinary device computes "
        "all of them",
        soft_wrap=True,
    )
