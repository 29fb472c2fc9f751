"""Time the backends of depthwise convolution on this CPU, map by map, and write a record.

    python benchmarks/depthwise_layouts.py benchmarks/results/cpu_depthwise_layouts.json

Every candidate is first compared with float64; a wrong one is not timed. Candidates take turns within one process, so
their ratios hold on a noisy machine where single times do not.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from widefield import __version__
from widefield.ops.backends import PASSES, Backend, Pass
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.order import BACKENDS, order
from widefield.ops.depthwise_conv.problem import Problem

LAYERS = ((4, 96, 56), (4, 192, 28), (4, 384, 14), (4, 768, 7), (64, 32, 32), (64, 128, 8), (1, 128, 56))
KERNEL_SIZES = (3, 5, 7, 9, 13, 17, 31)
ROUNDS = 7
TOLERANCE = 1e-5


def problem_of(batch: int, channels: int, size: int, kernel_size: int) -> Problem:
    half = kernel_size // 2
    return Problem(
        batch=batch,
        channels=channels,
        height=size,
        width=size,
        kernel_size=(kernel_size, kernel_size),
        padding=(half, half),
    )


def run(backend: Backend, pass_: Pass, problem: Problem, x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    if pass_ == "forward":
        return backend.forward(x, weight, None, problem)
    if pass_ == "grad_input":
        return backend.grad_input(grad, weight, problem)
    return backend.grad_weight(grad, x, problem)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(problem: Problem, pass_: Pass) -> dict[str, object]:
    problem, _ = clip(problem)
    shape = (problem.batch, problem.channels, problem.height, problem.width)
    x, grad = torch.randn(shape), torch.randn(shape)
    weight = torch.randn(problem.channels, 1, *problem.kernel_size)
    exact = replace(problem, dtype=torch.float64)
    expected = run(BACKENDS[0], pass_, exact, x.double(), grad.double(), weight.double())
    calls, errors = {}, {}
    for backend in BACKENDS:
        if backend.name == "reference" or backend.refusals(problem, pass_):
            continue
        call = lambda backend=backend: run(backend, pass_, problem, x, grad, weight).contiguous()  # noqa: E731
        errors[backend.name] = float((call().double() - expected).norm() / expected.norm())
        if errors[backend.name] < TOLERANCE:
            calls[backend.name] = call
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(1000 * seconds(call))
    medians = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    chosen = order(problem, pass_)[0]
    return {
        "problem": str(problem),
        "pass": pass_,
        "chosen": chosen,
        "median_ms": {name: round(value, 4) for name, value in medians.items()},
        "minimum_ms": {name: round(min(values), 4) for name, values in times.items()},
        "relative_error": {name: float(f"{value:.2e}") for name, value in errors.items()},
        "speedup_over_aten": round(medians["aten"] / medians[chosen], 3),
        "share_of_best": round(min(medians.values()) / medians[chosen], 3),
    }


def main(path: Path) -> None:
    torch.manual_seed(0)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows = [
        measure(problem_of(*layer, kernel_size), pass_)
        for layer in LAYERS
        for kernel_size in KERNEL_SIZES
        for pass_ in PASSES
    ]
    record = {
        "what": "depthwise convolution, float32, NCHW input and output, median of interleaved rounds",
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "widefield": __version__,
        "commit": commit,
        "rounds": ROUNDS,
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    for pass_ in PASSES:
        shares = [row["share_of_best"] for row in rows if row["pass"] == pass_]
        speedups = [row["speedup_over_aten"] for row in rows if row["pass"] == pass_]
        print(pass_, "worst share of best", min(shares), "speed-up over aten", min(speedups), "to", max(speedups))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
