"""``widefield doctor``: what is installed, what runs here, and whether it computes the right thing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from widefield.__about__ import __version__
from widefield._core.errors import RunError
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal, styled
from widefield.ops.backends import PASSES, Backend, Pass
from widefield.ops.depthwise_conv.order import BACKENDS
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.reference import ReferenceBackend

_REQUIRED = ("torch", "torchvision", "timm", "accelerate", "safetensors", "numpy", "scikit-learn", "matplotlib")
_OPTIONAL = {"datasets": "hf", "webdataset": "wds", "wandb": "wandb"}
# Relative to the largest value; the float32 sums here have a few thousand terms.
_TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True)
class DoctorArguments:
    """Check the installation, and every backend against the reference; takes a few seconds."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    parse(DoctorArguments, words, command="doctor")
    console = Terminal()
    console.print(f"widefield {__version__}, Python {platform.python_version()}, {platform.platform()}")
    _print_packages(console)
    _print_devices(console)
    wrong = _check_backends(console)
    if wrong:
        raise RunError(
            f"Expected every backend to agree with the reference, but {', '.join(wrong)} did not: "
            "do not trust it here, and report this output."
        )
    console.print("everything that runs here computes the right thing")


def _print_packages(console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name in _REQUIRED:
        table.add_row(name, importlib.metadata.version(name))
    for name, extra in _OPTIONAL.items():
        found = importlib.util.find_spec(name) is not None
        table.add_row(
            name, importlib.metadata.version(name) if found else f"not installed: pip install 'widefield[{extra}]'"
        )
    console.print(table)


def _print_devices(console: Console) -> None:
    console.print(f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            console.print(f"GPU {index}: {torch.cuda.get_device_name(index)}")
    else:
        built = "this torch has no CUDA" if torch.version.cuda is None else "no NVIDIA GPU or driver was found"
        console.print(f"GPU: none ({built}); training and inference run on the CPU")


def _check_backends(console: Console) -> list[str]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    table = Table(title=f"depthwise convolution on {device}, largest error against the reference", title_justify="left")
    for heading in ("backend", *PASSES, "what it is"):
        table.add_column(heading)
    wrong: list[str] = []
    for backend in BACKENDS:
        cells = [_check(backend, pass_, device) for pass_ in PASSES]
        wrong += [f"{backend.name} {pass_}" for pass_, cell in zip(PASSES, cells, strict=True) if "WRONG" in cell]
        table.add_row(backend.name, *cells, backend.summary)
    console.print(table)
    return wrong


def _check(backend: Backend, pass_: Pass, device: str) -> str | Text:
    worst, reasons = 0.0, set[str]()
    for kernel_size in ((3, 3), (13, 13), (31, 31), (5, 51)):
        problem = Problem(
            batch=2,
            channels=5,
            height=20,
            width=23,
            kernel_size=kernel_size,
            padding=(kernel_size[0] // 2, kernel_size[1] // 2),
            device_type=device,
        )
        refusals = backend.refusals(problem, pass_)
        if refusals:
            reasons.update(refusals)
            continue
        expected, actual = (_computed(chosen, pass_, problem) for chosen in (ReferenceBackend(), backend))
        worst = max(worst, float((actual - expected).abs().max() / expected.abs().max()))
    if reasons:
        return "cannot: " + "; ".join(sorted(reasons))
    return f"{worst:.0e}" if worst < _TOLERANCE else styled(f"WRONG {worst:.0e}", "red")


def _computed(backend: Backend, pass_: Pass, problem: Problem) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (problem.batch, problem.channels, problem.height, problem.width)
    x = torch.randn(shape, generator=generator).to(problem.device_type)
    weight = torch.randn((problem.channels, 1, *problem.kernel_size), generator=generator).to(problem.device_type)
    if pass_ == "forward":
        return backend.forward(x, weight, None, problem)
    return (
        backend.grad_input(x, weight, problem) if pass_ == "grad_input" else backend.grad_weight(x, x.flip(0), problem)
    )
