"""``widefield kernels``: where the weights of large kernels lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from widefield._core.checks import check
from widefield._core.plain_text import visible
from widefield.analysis.kernel_plot import draw_kernel_weights
from widefield.analysis.kernel_weights import KernelWeights, measure_kernel_weights, save_kernel_weights
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal, progress_bar
from widefield.reparam import fold
from widefield.tasks.classification import open_model


@dataclass(frozen=True, kw_only=True)
class KernelsArguments:
    """Show where the weights of a network's large kernels lie, layer by layer.

    Branches are merged first, so that each kernel is the one that acts. Shares are of the sum of |w| over all channels.
    """

    model: Annotated[str, tyro.conf.Positional]
    """A name of timm's or our models, torchvision:NAME, MODULE:FUNCTION, a run folder or a checkpoint file."""

    min_size: int = 7
    """Smallest kernel to show, in pixels on its longer side."""

    layers: tuple[str, ...] = ()
    """Layers, or modules that hold some; all if not given."""

    pretrained: bool = False
    """Fetch published weights, of timm's and torchvision's models; random if not."""

    form: Literal["branched", "merged"] = "branched"
    """Which of a run folder's two files."""

    seed: int = 0
    """Of random weights."""

    scale: Literal["linear", "log"] = "linear"
    """Of the figure's colours; log shows what a strong centre outshines."""

    output: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-o"])] = ()
    """Page of maps (.png), all figures (.json) or both; never overwritten."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(KernelsArguments, words, command="kernels")
    for path in arguments.output:
        check(path.suffix in (".png", ".json"), "a .png or .json file to write", str(path), "change its ending")
        check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
        check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")
    opened = open_model(arguments.model, pretrained=arguments.pretrained, seed=arguments.seed, form=arguments.form)
    # A norm that follows in a plain sequence is left where the network has it.
    fold(opened.model, where=lambda _, module: type(module) is not nn.Sequential)
    console = Terminal()
    with progress_bar(console) as progress:
        bar = progress.add_task("layers", total=None)
        layers = measure_kernel_weights(
            opened.model,
            min_size=arguments.min_size,
            layers=arguments.layers or None,
            progress=lambda done, all_: progress.update(bar, completed=done, total=all_),
        )
    title = f"{opened.name} ({opened.weights})"
    _print(console, layers, title)
    for path in arguments.output:
        if path.suffix == ".png":
            draw_kernel_weights(path, layers, title=title, scale=arguments.scale)
        else:
            save_kernel_weights(path, layers)
        console.print(f"wrote {visible(path)}", soft_wrap=True)


def _print(console: Console, layers: Sequence[KernelWeights], title: str) -> None:
    table = Table(title=f"kernels of {visible(title)}: shares of the sum of |w|", title_justify="left")
    for heading in ("layer", "kernel", "channels", "central 3x3", "central cross", "90 % within", "99 % within"):
        table.add_column(heading, justify="left" if heading == "layer" else "right", overflow="fold")
    for layer in layers:
        height, width = layer.kernel_size
        table.add_row(
            layer.name,
            f"{height}x{width}" + ("" if layer.is_depthwise else " dense"),
            f"{layer.channels:,}",
            f"{100 * layer.central_share:.1f} %",
            f"{100 * layer.skeleton_share:.1f} %",
            f"{layer.effective_size(0.9)}x{layer.effective_size(0.9)}",
            f"{layer.effective_size(0.99)}x{layer.effective_size(0.99)}",
        )
    console.print(table)
