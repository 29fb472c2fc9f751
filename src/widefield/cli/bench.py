"""``widefield bench``: time operators, sweeps and whole networks, and keep the records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from widefield._core.checks import check, check_name
from widefield._core.errors import RunError
from widefield._core.memory import keep_freed_memory
from widefield._core.plain_text import visible
from widefield.bench import records
from widefield.bench.cases import Layer
from widefield.bench.entries import AUTO
from widefield.bench.model import ModelSettings, bench_models
from widefield.bench.operator import bench_operator
from widefield.bench.records import Record
from widefield.bench.sweep import KERNEL_SIZES, sweep_grid, sweep_kernel_sizes
from widefield.cli.arguments import parse
from widefield.cli.bench_tables import print_maps, print_models, print_summary
from widefield.cli.terminal import Terminal, description

Dtype = Literal["float32", "bfloat16", "float16"]
Output = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True, kw_only=True)
class OperatorArguments:
    """Time every backend for every map of a "same" depthwise convolution, and the dispatched operator ("auto")."""

    batch: Annotated[int, tyro.conf.Positional]
    """N, number of images."""
    channels: Annotated[int, tyro.conf.Positional]
    """C."""
    height: Annotated[int, tyro.conf.Positional]
    """H."""
    width: Annotated[int, tyro.conf.Positional]
    """W."""
    kernel_size: Annotated[tuple[int, ...], tyro.conf.Positional]
    """K, or K_h K_w; odd."""
    dtype: Dtype = "float32"
    """Type of input and weight."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device type."""
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    """Memory format of the input."""
    budget_s: float = 10.0
    """Seconds of timing for all three maps together."""
    output: Output = None
    """File for the record; never overwritten."""


@dataclass(frozen=True, kw_only=True)
class KernelSizesArguments:
    """Time every backend on one map over square kernel sizes."""

    batch: Annotated[int, tyro.conf.Positional]
    """N, number of images."""
    channels: Annotated[int, tyro.conf.Positional]
    """C."""
    height: Annotated[int, tyro.conf.Positional]
    """H."""
    width: Annotated[int, tyro.conf.Positional]
    """W."""
    kernel_sizes: tuple[int, ...] = KERNEL_SIZES
    """Each K; odd."""
    dtype: Dtype = "float32"
    """Type of input and weight."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device type."""
    budget_s: float = 6.0
    """Seconds of timing for each kernel size."""
    output: Output = None
    """File for the record; a broken sweep in it is taken up."""


@dataclass(frozen=True, kw_only=True)
class GridArguments:
    """Time every backend on the layers of all published networks, and judge the dispatcher by them; takes hours."""

    batches: tuple[int, ...] = (1, 8, 32)
    """Numbers of images."""
    every: int = 1
    """Of the 963 problems in order of size take each so manieth only: with 4 it takes about half an hour."""
    dtype: Dtype = "float32"
    """Type of input and weight."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device type."""
    budget_s: float = 3.0
    """Seconds of timing for each problem."""
    output: Output = None
    """File for the record; a broken sweep in it is taken up."""


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Time a network with random weights, in turns with others."""

    name: Annotated[str, tyro.conf.Positional]
    """One of ours, or any of timm's."""
    against: tuple[str, ...] = ()
    """Others, for instance swin_base_patch4_window7_224."""
    batch: int = 1
    """Images at a time."""
    image_size: int = 224
    """Side of the images in pixels."""
    dtype: Dtype = "float32"
    """Of weights and images; of autocast in a training step."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device type."""
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    """Memory format of images and weights."""
    merged: bool = True
    """Merge ours first (--no-merged: do not); a training step is always that of the train form."""
    backend: tuple[str, ...] = (AUTO,)
    """Backends of depthwise convolution to time the network on; auto leaves the choice to the dispatcher."""
    train_step: bool = False
    """Time forward, backward and an AdamW step in place of inference."""
    compile: bool = False
    """Put torch.compile around each network."""
    budget_s: float = 30.0
    """Seconds of timing for all networks together."""
    output: Output = None
    """File for the record; never overwritten."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    if not words or words[0] in ("-h", "--help"):
        _print_usage()
        return
    check_name(words[0], _COMMANDS, "benchmark")
    _COMMANDS[words[0]](words[1:])


def _operator(words: Sequence[str]) -> None:
    a = parse(OperatorArguments, words, command="bench op")
    console = Terminal()
    _check_output(a.output, is_resumable=False)
    kernel = (a.kernel_size[0], a.kernel_size[-1])
    sizes = (a.batch, a.channels, a.height, a.width, *kernel)
    check(min(sizes) > 0, "positive sizes", f"{sizes}", "give N, C, H, W and K as whole numbers above 0")
    check(all(k % 2 for k in kernel), "an odd kernel size", f"{kernel[0]}x{kernel[1]}", "add or take 1")
    layer = Layer(name="", channels=a.channels, height=a.height, width=a.width, kernel_size=kernel, source="")
    problem = layer.problem(a.batch, getattr(torch, a.dtype), _device(a.device), a.layout)
    with console.status("timing") as status:
        record = bench_operator(
            problem, budget_s=a.budget_s, progress=lambda name: status.update(Text(f"timing {name}"))
        )
    print_maps(console, record)
    _keep(console, record, a.output)
    _refuse_wrong(record)


def _sweep(words: Sequence[str]) -> None:
    sweeps = {"K": _kernel_sizes, "grid": _grid}
    check_name(words[0] if words else "", sweeps, "sweep")
    sweeps[words[0]](words[1:])


def _kernel_sizes(words: Sequence[str]) -> None:
    a = parse(KernelSizesArguments, words, command="bench sweep K")
    console = Terminal()
    _check_output(a.output, is_resumable=True)
    with _bar(console) as bar:
        record = sweep_kernel_sizes(
            a.channels,
            a.height,
            a.width,
            batch=a.batch,
            kernel_sizes=a.kernel_sizes,
            dtype=getattr(torch, a.dtype),
            device=_device(a.device),
            budget_s=a.budget_s,
            path=a.output,
            progress=_follow(bar),
        )
    print_maps(console, record)
    _tell_kept(console, a.output)
    _refuse_wrong(record)


def _grid(words: Sequence[str]) -> None:
    a = parse(GridArguments, words, command="bench sweep grid")
    console = Terminal()
    _check_output(a.output, is_resumable=True)
    with _bar(console) as bar:
        record = sweep_grid(
            batches=a.batches,
            every=a.every,
            dtype=getattr(torch, a.dtype),
            device=_device(a.device),
            budget_s=a.budget_s,
            path=a.output,
            progress=_follow(bar),
        )
    print_summary(console, record)
    _tell_kept(console, a.output)
    _refuse_wrong(record)


def _model(words: Sequence[str]) -> None:
    a = parse(ModelArguments, _spelled_out(words), command="bench model")
    console = Terminal()
    _check_output(a.output, is_resumable=False)
    settings = ModelSettings(
        batch=a.batch,
        image_size=a.image_size,
        dtype=getattr(torch, a.dtype),
        device=_device(a.device),
        layout=a.layout,
        mode="train_step" if a.train_step else "inference",
        is_merged=a.merged,
        is_compiled=a.compile,
    )
    if a.train_step:
        # As widefield train does.
        keep_freed_memory()
    with console.status("timing") as status:
        record = bench_models(
            a.name,
            against=a.against,
            backends=a.backend,
            settings=settings,
            budget_s=a.budget_s,
            progress=lambda name: status.update(Text(f"making and timing {visible(name)}")),
        )
    print_models(console, record)
    _keep(console, record, a.output)
    _refuse_wrong(record)


_COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"op": _operator, "sweep": _sweep, "model": _model}


_FLAGS = {
    "--merged": ["--merged", "True"],
    "--no-merged": ["--merged", "False"],
    "--train-step": ["--train-step", "True"],
    "--compile": ["--compile", "True"],
}


def _print_usage() -> None:
    console = Terminal()
    console.print("widefield bench op N C H W K             every backend for every map of one convolution")
    console.print("widefield bench sweep K N C H W          the same over kernel sizes")
    console.print("widefield bench sweep grid -o FILE       the same over the layers of all published networks")
    console.print("widefield bench model NAME               a whole network, --against others")
    console.print("\nEach takes --help.")


def _spelled_out(words: Sequence[str]) -> list[str]:
    """Give flags that stand alone their value; as everywhere, ``--merged False`` is understood too."""
    spelled: list[str] = []
    for index, word in enumerate(words):
        is_alone = word in _FLAGS and (index + 1 == len(words) or words[index + 1] not in ("True", "False"))
        spelled += _FLAGS[word] if is_alone else [word]
    return spelled


def _device(name: str) -> str:
    is_there = name == "cpu" or torch.cuda.is_available()
    check(is_there, "a device that is here", f"{name!r} without a GPU or driver", "use --device cpu")
    return name


def _check_output(path: Path | None, *, is_resumable: bool) -> None:
    if path is None:
        return
    check(is_resumable or not path.exists(), "a new file to write", f"{path}, which exists", "name another")
    check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")


def _keep(console: Console, record: Record, path: Path | None) -> None:
    if path is not None:
        records.write(record, path)
    _tell_kept(console, path)


def _tell_kept(console: Console, path: Path | None) -> None:
    if path is not None:
        console.print(f"wrote {visible(path)}", soft_wrap=True)


def _refuse_wrong(record: Record) -> None:
    wrong = sorted({name for entry in record.maps for name in entry.wrong})
    wrong += [entry.result.name for entry in record.models if entry.result.is_wrong]
    if wrong:
        raise RunError(
            f"Expected every candidate to compute the right thing, but {', '.join(wrong)} did not and was not timed: "
            "run widefield doctor, and report what it says."
        )


def _bar(console: Console) -> Progress:
    columns = (description(), BarColumn(bar_width=30), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _follow(bar: Progress) -> Callable[[int, int, str], None]:
    task = bar.add_task("timing")

    def follow(done: int, total: int, name: str) -> None:
        bar.update(task, completed=done, total=total, description=name or "timed")

    return follow
