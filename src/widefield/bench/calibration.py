"""Drawn problems, their measured times, and the cost coefficients that fit them best."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from scipy.optimize import nnls

from widefield.bench.entries import MapEntry, Result, Shape
from widefield.bench.environment import environment
from widefield.bench.operands import Operands, finished, make_operands
from widefield.bench.race import Contestant, race
from widefield.bench.records import Record
from widefield.bench.timers import CpuTimer, Timer
from widefield.ops.backends import PASSES, Backend, Pass
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.costs import CostTable, features, regime
from widefield.ops.depthwise_conv.order import BACKENDS, CPU_BACKENDS
from widefield.ops.depthwise_conv.problem import Problem

SIZES = (7, 8, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 152, 200)
CHANNELS = (16, 24, 32, 48, 62, 64, 96, 124, 128, 166, 192, 256, 332, 384, 512, 768, 1024)
BATCHES = (1, 1, 2, 4, 8, 16, 32)
KERNELS = (3, 3, 5, 5, 7, 7, 9, 11, 13, 13, 17, 21, 27, 31, 41, 51, 69, 101)
STRIDED_KERNELS = (3, 3, 3, 5, 7, 13)
LEAST_MACS, MOST_MACS = 1 << 19, 1 << 29
MOST_VALUES = 1 << 23
"""Values of the largest input."""

REWEIGHTINGS = 8
"""Of the fit."""

DTYPES = ((torch.float32, 6), (torch.bfloat16, 1), (torch.float64, 2))
"""Types, and of how many in nine problems."""

SEQUENCES = (512, 1024, 4096, 16000)
"""Lengths in one dimension."""

SEQUENCE_KERNELS = (7, 31, 101, 201, 501, 1001, 2001)


def drawn_problems(count: int, *, seed: int = 0) -> list[Problem]:
    """Return `count` different problems of all shapes that large-kernel networks meet, for fitting a `CostTable`.

    Args:
        count: How many.
        seed: Of the draw.
    """
    draw = random.Random(seed)
    dtypes = [dtype for dtype, share in DTYPES for _ in range(share)]
    problems: dict[Problem, None] = {}
    while len(problems) < count:
        height = draw.choice(SIZES)
        width = height if draw.random() < 0.7 else draw.choice(SIZES)
        side = draw.choice(KERNELS)
        kernel = (side, side)
        if draw.random() < 0.25:
            kernel = draw.choice(((side, 5), (5, side)))
        stride = 1
        if draw.random() < 0.18:
            # Strided layers are the small ones between stages.
            stride, side = 2, draw.choice(STRIDED_KERNELS)
            kernel = (side, side)
        elif draw.random() < 0.08:
            height, width, kernel = draw.choice(SEQUENCES), 1, (draw.choice(SEQUENCE_KERNELS), 1)
        problem = Problem(
            batch=draw.choice(BATCHES),
            channels=draw.choice(CHANNELS),
            height=height,
            width=width,
            kernel_size=kernel,
            padding=(kernel[0] // 2, kernel[1] // 2),
            stride=(stride, stride),
            dtype=dtypes[len(problems) % len(dtypes)],
            layout="channels_last" if draw.random() < 0.2 and width > 1 else "contiguous",
        )
        values = problem.batch * problem.channels * height * width
        if LEAST_MACS <= clip(problem)[0].macs <= MOST_MACS and values <= MOST_VALUES:
            problems[problem] = None
    return list(problems)


def measure(
    problems: Sequence[Problem],
    *,
    budget_s: float = 0.4,
    backends: Sequence[Backend] = BACKENDS,
    timer: Timer | None = None,
    progress: Callable[[int], object] | None = None,
) -> Record:
    """Time every backend for every map of some problems.

    Args:
        problems: Which.
        budget_s: Seconds of timing for one map.
        backends: The candidates.
        timer: Takes the samples.
        progress: Called with the number of problems done.
    """
    entries: list[MapEntry] = []
    for index, problem in enumerate(problems):
        runs_as, _ = clip(problem)
        operands = make_operands(runs_as)
        for pass_ in PASSES:
            timings = race(
                [_contestant(b, pass_, operands, runs_as) for b in backends if _can_run(b, runs_as, pass_)],
                timer or CpuTimer(),
                budget_s=budget_s,
            )
            results = tuple(Result(name=name).with_timing(timing) for name, timing in timings.items())
            entry = MapEntry(
                problem=Shape.of(problem),
                runs_as=runs_as.kernel_size,
                pass_=pass_,
                oracle="not compared: widefield doctor does that",
                error_limit=0.0,
                chosen="",
                results=results,
            )
            entries.append(entry)
        if progress is not None:
            progress(index + 1)
    return Record(kind="calibration", environment=environment("cpu"), planned=len(problems), maps=tuple(entries))


def _can_run(backend: Backend, problem: Problem, pass_: Pass) -> bool:
    return backend.name in CPU_BACKENDS and not backend.refusals(problem, pass_)


def _contestant(backend: Backend, pass_: Pass, operands: Operands, problem: Problem) -> Contestant:
    first, single = operands.first_image(), replace(problem, batch=1)
    return Contestant(
        name=backend.name,
        call=lambda index: finished(operands.run(backend, pass_, problem), problem, pass_),
        first_image=(lambda index: finished(first.run(backend, pass_, single), single, pass_))
        if problem.batch > 1
        else None,
    )


def _fitted(matrix: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Minimise the sum of (predicted - time)^2 / (predicted time): twice too long costs as much as half as long."""
    predicted = times
    for _ in range(REWEIGHTINGS):
        weights = 1 / np.sqrt(predicted * times)
        solution, _ = nnls(matrix * weights[:, None], times * weights)
        predicted = np.maximum(matrix @ solution, times / 100)
    return solution


def fit(record: Record) -> CostTable:
    """Fit a table to a record by non-negative least squares; factors and their inverses are equal errors.

    Args:
        record: Of `measure`, or any other with entries of maps, all on one CPU with one number of threads.
    """
    rows: list[tuple[str, tuple[float, ...], float]] = []
    for entry in record.maps:
        clipped, _ = clip(entry.problem.problem())
        for result in entry.results:
            if result.median_ms is not None and result.name in CPU_BACKENDS:
                key = regime(result.name, entry.pass_, clipped)
                rows.append((key, features(result.name, clipped), result.median_ms))
    coefficients: dict[str, tuple[float, ...]] = {}
    for key, group in groupby(sorted(rows), key=lambda row: row[0]):
        members = list(group)
        matrix = np.array([values for _, values, _ in members])
        times = np.array([time for _, _, time in members])
        coefficients[key] = tuple(float(value) for value in _fitted(matrix, times))
    here = record.environment
    return CostTable(
        source=f"{record.problems} drawn problems on {here.device} with torch {here.torch}, {here.date[:10]}",
        capability=here.capability,
        threads=here.threads,
        coefficients=coefficients,
    )


def typical_error(table: CostTable, record: Record) -> float:
    """Return the median of |predicted / measured - 1| over all times of a record."""
    errors: list[float] = []
    for entry in record.maps:
        clipped, _ = clip(entry.problem.problem())
        for result in entry.results:
            if result.median_ms is not None:
                predicted = table.predict(result.name, entry.pass_, clipped, record.environment.threads)
                errors.append(abs(predicted / result.median_ms - 1))
    return float(np.median(errors))
