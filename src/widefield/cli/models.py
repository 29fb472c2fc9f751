"""``widefield models``: what there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
import tyro
from rich.console import Console
from rich.table import Table

from widefield._core.checks import check_name
from widefield.cli.arguments import parse
from widefield.models import create_model, list_models, replknet


@dataclass(frozen=True, kw_only=True)
class ModelsArguments:
    """List the models, or show one."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A model; all of them if not given."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(ModelsArguments, words, command="models")
    console = Console(highlight=False)
    if arguments.name is not None:
        _print_one(console, arguments.name)
        return
    table = Table()
    for heading in ("model", "parameters", "widths", "pairs of blocks", "kernel sizes"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for name in list_models():
        variant = replknet.VARIANTS[name]
        rows = (variant.channels, variant.depths, variant.kernel_sizes)
        table.add_row(name, f"{_parameters(name) / 1e6:.1f} M", *(" ".join(map(str, row)) for row in rows))
    console.print(table)


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())


def _print_one(console: Console, name: str) -> None:
    check_name(name, list_models(), "model")
    with torch.device("meta"):
        model = create_model(name)
    settings = cast("dict[str, Any]", model.pretrained_cfg)
    console.print(f"[bold]{name}[/]: {(getattr(replknet, name).__doc__ or '').strip()}")
    console.print(f"parameters   {sum(parameter.numel() for parameter in model.parameters()):,}")
    console.print(f"input        {'x'.join(map(str, settings['input_size']))}, any from 32x32")
    console.print(f"mean, std    {settings['mean']}, {settings['std']}")
    console.print(f"licence      {settings['license']}")
    console.print("weights      none published with this library; load a file with --model.weights")
    console.print(f'\nin Python    widefield.create_model("{name}", num_classes=10)')
