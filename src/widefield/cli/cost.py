"""``widefield cost``: parameters, multiply-accumulates, memory and time of networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from widefield._core.checks import check
from widefield._core.files import write_text_atomically
from widefield._core.plain_text import visible
from widefield.analysis.cost import Cost, measure_cost
from widefield.analysis.cost_plot import draw_costs
from widefield.analysis.latency import Latency, measure_latency
from widefield.analysis.operator_shares import KINDS, OperatorShares, measure_shares
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal, progress_bar
from widefield.reparam import fold
from widefield.tasks.classification import open_model


@dataclass(frozen=True, kw_only=True)
class CostArguments:
    """Count what a forward pass of networks costs, and time it on request.

    MACs are multiply-accumulates of convolutions and matrix products, the "FLOPs" of the papers. Nothing is computed
    for counting them: only --latency and --shares run the networks.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names of timm's or our models, torchvision:NAME, MODULE:FUNCTION, run folders or checkpoint files."""

    size: int | None = None
    """Side of the images in pixels; what each network was made for if not given."""

    batch: int = 1
    """Images in a batch."""

    merged: bool = True
    """Whether branches are merged first, as for inference; False counts the form for training."""

    by_module: int = 0
    """Depth to which the modules of each network are listed: 1 for its parts, 0 for the whole alone."""

    latency: bool = False
    """Whether to time the networks as well."""

    shares: bool = False
    """Whether to measure which kinds of operators the MACs and the time are spent on."""

    seconds: float = 5.0
    """Of timing for each network; --latency and --shares take so many each."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to time."""

    output: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-o"])] = ()
    """Bars (.png), every module's figures (.json) or both; never overwritten."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(CostArguments, words, command="cost")
    names = arguments.models
    check(bool(names), "at least one model", "none", "name them: widefield cost MODEL ...")
    check(len(set(names)) == len(names), "models that differ", ", ".join(names), "name each of them once")
    check(arguments.batch > 0, "a batch of at least one image", f"{arguments.batch}", "use --batch 1")
    check(arguments.size is None or arguments.size > 0, "a size in pixels", f"{arguments.size}", "use --size 224")
    check(arguments.device == "cpu" or torch.cuda.is_available(), "a GPU to time on", "none", "use --device cpu")
    for path in arguments.output:
        check(path.suffix in (".png", ".json"), "a .png or .json file to write", str(path), "change its ending")
        check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
        check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")
    console = Terminal()
    costs: dict[str, Cost] = {}
    latencies: dict[str, Latency] = {}
    shares: dict[str, OperatorShares] = {}
    with progress_bar(console) as progress:
        bar = progress.add_task("networks", total=len(names))
        for name in names:
            progress.update(bar, description=name)
            opened = open_model(name)
            if arguments.merged:
                # A norm that follows in a plain sequence is counted as the network has it.
                fold(opened.model, where=lambda _, module: type(module) is not nn.Sequential)
            size = arguments.size or opened.image_size
            shape = (arguments.batch, len(opened.mean), size, size)
            costs[name] = measure_cost(opened.model, shape)
            if arguments.latency or arguments.shares:
                model, example = opened.model.to(arguments.device), torch.randn(shape, device=arguments.device)
                if arguments.latency:
                    latencies[name] = measure_latency(model, example, budget_s=arguments.seconds)
                if arguments.shares:
                    shares[name] = measure_shares(model, example, budget_s=arguments.seconds)
            progress.advance(bar)
    _print(console, costs, latencies, arguments)
    if shares:
        _print_shares(console, shares)
    for path in arguments.output:
        if path.suffix == ".png":
            draw_costs(path, costs, latencies, shares)
        else:
            write_text_atomically(path, json.dumps(_plain(costs, latencies, shares), indent=1) + "\n")
        console.print(f"wrote {visible(path)}", soft_wrap=True)


def _plain(
    costs: dict[str, Cost], latencies: dict[str, Latency], shares: dict[str, OperatorShares]
) -> list[dict[str, object]]:
    return [
        {
            "model": name,
            **costs[name].to_plain(),
            "latency": {**asdict(latencies[name]), "images_per_s": latencies[name].images_per_s}
            if name in latencies
            else None,
            **({"shares": shares[name].to_plain()} if name in shares else {}),
        }
        for name in costs
    ]


def _print(console: Console, costs: dict[str, Cost], latencies: dict[str, Latency], arguments: CostArguments) -> None:
    form = "merged" if arguments.merged else "with their branches"
    table = _table(
        f"one forward pass, networks {form}",
        ("model", "input", "parameters", "not zero", "GMACs", "large kernels", "peak MB", "FLOPs/byte"),
    )
    for name, found in costs.items():
        total = found.total
        table.add_row(
            visible(name),
            "x".join(map(str, found.input_size)),
            f"{total.parameters / 1e6:,.2f}M",
            "-" if total.nonzeros is None else f"{total.nonzeros / 1e6:,.2f}M",
            f"{total.macs / 1e9:,.2f}",
            f"{100 * found.large_kernel_mac_share:.1f} %",
            f"{found.peak_bytes / 1e6:,.1f}",
            f"{total.intensity:.1f}",
        )
    console.print(table)
    console.print(
        "large kernels: share of the MACs in depthwise kernels of 7 and more; peak: activations alive at a time; "
        "FLOPs/byte: if no operator is fused with another",
        soft_wrap=True,
    )
    if latencies:
        _print_latencies(console, latencies)
    for name, found in costs.items():
        if arguments.by_module:
            _print_modules(console, name, found, arguments.by_module)


def _print_latencies(console: Console, latencies: dict[str, Latency]) -> None:
    first = next(iter(latencies.values()))
    title = f"time of a batch of {first.batch} on {first.device}, {first.threads} threads"
    table = _table(title, ("model", "median ms", "5 %", "25 %", "75 %", "95 %", "images/s", "runs"))
    for name, found in latencies.items():
        times = (found.median_ms, found.p05_ms, found.p25_ms, found.p75_ms, found.p95_ms, found.images_per_s)
        table.add_row(visible(name), *(f"{value:,.2f}" for value in times), str(found.runs))
    console.print(table)


def _print_shares(console: Console, shares: dict[str, OperatorShares]) -> None:
    for name, found in shares.items():
        title = f"{visible(name)}: operators of a batch of {found.batch} on {found.device}, {found.threads} threads"
        table = _table(title, ("operators", "share of MACs", "share of time", "ms"))
        of_macs, of_time = found.of_macs, found.of_time
        for kind in KINDS:
            shown = (f"{100 * share:.1f} %" for share in (of_macs[kind], of_time[kind]))
            table.add_row(kind, *shown, f"{found.milliseconds[kind]:,.2f}")
        console.print(table)
    console.print(
        "large depthwise: a side of 7 or more; linear: all matrix products; time: operators one by one",
        soft_wrap=True,
    )


def _print_modules(console: Console, name: str, found: Cost, depth: int) -> None:
    headings = ("module", "class", "parameters", "MMACs", "share", "output MB", "FLOPs/byte")
    table = _table(visible(name), headings, text=2)
    for module in found.modules:
        if 0 < module.depth <= depth:
            table.add_row(
                "  " * (module.depth - 1) + module.name.rpartition(".")[2],
                module.kind,
                f"{module.parameters:,}",
                f"{module.macs / 1e6:,.1f}",
                f"{100 * module.macs / max(found.total.macs, 1):.1f} %",
                f"{module.output_bytes / 1e6:,.1f}",
                f"{module.intensity:.1f}",
            )
    console.print(table)


def _table(title: str, headings: Sequence[str], text: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < text else "right", overflow="fold")
    return table
