"""Many problems, one after the other, into one record that a broken run takes up again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from widefield._core.checks import check
from widefield.bench import records
from widefield.bench.cases import grid, kernel_size_layers
from widefield.bench.entries import MapEntry, Shape
from widefield.bench.environment import Environment, environment
from widefield.bench.operands import make_operands
from widefield.bench.operator import backend_candidates, bench_map
from widefield.bench.records import Kind, Record
from widefield.bench.timers import Timer
from widefield.ops.backends import PASSES, Backend, Pass
from widefield.ops.depthwise_conv.order import BACKENDS
from widefield.ops.depthwise_conv.problem import Problem

KERNEL_SIZES = (3, 5, 7, 9, 11, 13, 15, 17, 21, 25, 31, 41, 51, 61, 81, 101)

Progress = Callable[[int, int, str], object]
"""Called with the number of problems done, the number of all, and the one at hand."""


def sweep_kernel_sizes(
    channels: int,
    height: int,
    width: int,
    *,
    batch: int = 4,
    kernel_sizes: Sequence[int] = KERNEL_SIZES,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    passes: Sequence[Pass] = PASSES,
    budget_s: float = 6.0,
    backends: Sequence[Backend] = BACKENDS,
    path: Path | None = None,
    timer: Timer | None = None,
    progress: Progress | None = None,
) -> Record:
    """Measure every backend on one map over square kernel sizes.

    Args:
        channels: C.
        height: H.
        width: W.
        batch: N.
        kernel_sizes: Each K; odd.
        dtype: Of input and weight.
        device: Device type.
        passes: Which maps.
        budget_s: Seconds of timing for each problem.
        backends: The candidates.
        path: File to keep the record in while it grows; one that is there is taken up.
        timer: Takes the samples; the device's own if not given.
        progress: Told of each problem.

    Returns:
        The record.

    Raises:
        InputError: As `sweep`.
    """
    even = [size for size in kernel_sizes if size % 2 == 0]
    check(not even, "odd kernel sizes", f"{even}", "add or take 1 from each")
    problems = [
        layer.problem(batch, dtype, device) for layer in kernel_size_layers(channels, height, width, kernel_sizes)
    ]
    return sweep(
        "kernel_sizes",
        problems,
        passes=passes,
        budget_s=budget_s,
        backends=backends,
        path=path,
        timer=timer,
        progress=progress,
    )


def sweep_grid(
    *,
    batches: Sequence[int] = (1, 8, 32),
    every: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    passes: Sequence[Pass] = PASSES,
    budget_s: float = 3.0,
    backends: Sequence[Backend] = BACKENDS,
    path: Path | None = None,
    timer: Timer | None = None,
    progress: Progress | None = None,
) -> Record:
    """Measure every backend on the problems of `widefield.bench.cases.grid`.

    Args and errors are those of `sweep_kernel_sizes`, and `every`: of the problems in order of size, take each so
    manieth only.
    """
    check(every > 0, "a positive number", f"every {every}", "1 takes all problems")
    problems = grid(batches, dtype=dtype, device=device)[::every]
    return sweep(
        "grid", problems, passes=passes, budget_s=budget_s, backends=backends, path=path, timer=timer, progress=progress
    )


def sweep(
    kind: Kind,
    problems: Sequence[Problem],
    *,
    passes: Sequence[Pass] = PASSES,
    budget_s: float,
    backends: Sequence[Backend] = BACKENDS,
    path: Path | None = None,
    timer: Timer | None = None,
    progress: Progress | None = None,
) -> Record:
    """Measure every backend on many problems.

    Args:
        kind: What the record is called.
        problems: What to compute, each once.
        passes: Which maps.
        budget_s: Seconds of timing for each problem.
        backends: The candidates.
        path: File to keep the record in: written after each problem, and taken up if it is there.
        timer: Takes the samples; the device's own if not given.
        progress: Told of each problem before it is measured, and of the end.

    Returns:
        The record, complete.

    Raises:
        InputError: If there is no problem, or `path` holds the record of another sweep, machine, version or commit.
    """
    check(len(problems) > 0, "at least one problem", "none", "give more batches or kernel sizes")
    here = environment(problems[0].device_type)
    record = Record(kind=kind, environment=here, planned=len(problems))
    if path is not None and path.exists():
        record = _taken_up(records.read(path), record, path)
    done = {entry.problem for entry in record.maps}
    for index, problem in enumerate(problems):
        if progress is not None:
            progress(index, len(problems), str(problem))
        if Shape.of(problem) in done:
            continue
        operands = make_operands(problem)
        entries: list[MapEntry] = []
        for pass_ in passes:
            candidates = backend_candidates(problem, pass_, backends)
            share_s = budget_s / len(passes)
            entries.append(bench_map(problem, pass_, candidates, operands=operands, budget_s=share_s, timer=timer))
        record = replace(record, maps=(*record.maps, *entries))
        if path is not None:
            records.write(record, path)
    if progress is not None:
        progress(len(problems), len(problems), "")
    return record


def _taken_up(earlier: Record, planned: Record, path: Path) -> Record:
    is_same = earlier.kind == planned.kind and earlier.planned == planned.planned
    words = f"{path}, a record of {earlier.planned} problems of kind {earlier.kind!r}"
    fix = "name a new file"
    check(is_same, f"a record of this sweep of {planned.planned} problems to take up", words, fix)
    here, there = planned.environment, earlier.environment
    same = here.is_comparable(there)
    check(
        same, "a record of this machine, software and commit to take up", f"{path} with {_differing(there, here)}", fix
    )
    return earlier


def _differing(there: Environment, here: Environment) -> str:
    names = [name for name in vars(there) if name != "date" and getattr(there, name) != getattr(here, name)]
    return ", ".join(f"{name} {getattr(there, name)}" for name in names)
