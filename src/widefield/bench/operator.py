"""One depthwise convolution: every backend for every map, and what the dispatcher makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from widefield._core.errors import WidefieldError
from widefield.bench.entries import AUTO, MapEntry, Result, Shape
from widefield.bench.environment import environment
from widefield.bench.gate import Oracle, limit, oracle
from widefield.bench.operands import Operands, finished, make_operands
from widefield.bench.race import Contestant, race
from widefield.bench.records import Record
from widefield.bench.timers import Timer, timer_for
from widefield.ops.backends import PASSES, Backend, Pass
from widefield.ops.depthwise_conv import depthwise_conv2d, maps
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.order import BACKENDS, machine
from widefield.ops.depthwise_conv.problem import Problem

NEVER_TIMED = "reference"
"""The definition: it is what the others are compared with."""

Compute = Callable[[Operands, Problem], Tensor]
"""Computes one map of a problem, in the problem's dtype and memory format."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that claims to compute one map."""

    name: str
    compute: Compute
    refusals: tuple[str, ...] = ()
    how: str = ""
    """Settings worth recording."""


def bench_operator(
    problem: Problem,
    *,
    passes: Sequence[Pass] = PASSES,
    budget_s: float = 10.0,
    backends: Sequence[Backend] = BACKENDS,
    timer: Timer | None = None,
    progress: Callable[[str], object] | None = None,
) -> Record:
    """Measure every backend, and the dispatched operator ("auto"), on one problem.

    Args:
        problem: What to compute.
        passes: Which maps.
        budget_s: Seconds of timing for the whole problem, split evenly over the maps. A map takes longer if one run of
            each candidate does.
        backends: The candidates.
        timer: Takes the samples; the device's own if not given.
        progress: Called with the name of each map before it is measured.

    Returns:
        A record of one entry for each map. A candidate whose result is wrong is in it with its error and no time.
    """
    operands = make_operands(problem)
    entries: list[MapEntry] = []
    for pass_ in passes:
        if progress is not None:
            progress(pass_)
        candidates = [*backend_candidates(problem, pass_, backends), auto_candidate(problem, pass_)]
        share_s = budget_s / len(passes)
        entries.append(bench_map(problem, pass_, candidates, operands=operands, budget_s=share_s, timer=timer))
    return Record(kind="operator", environment=environment(problem.device_type), planned=1, maps=tuple(entries))


def backend_candidates(problem: Problem, pass_: Pass, backends: Sequence[Backend] = BACKENDS) -> list[Candidate]:
    """Return every backend but the reference, with its refusals.

    Triton on CPU tensors is its interpreter, a stand-in for a GPU in tests: refused, since its times mean nothing.
    """
    runs_as, _ = clip(problem)
    return [
        Candidate(
            name=backend.name,
            compute=_on(backend, pass_),
            refusals=tuple(backend.refusals(runs_as, pass_) or _meaningless(backend, runs_as)),
        )
        for backend in backends
        if backend.name != NEVER_TIMED
    ]


def auto_candidate(problem: Problem, pass_: Pass) -> Candidate:
    """Return the dispatched operator, which clips, chooses and converts by itself: the public one for forward."""

    def compute(operands: Operands, at: Problem) -> Tensor:
        geometry = (at.stride, at.padding, at.dilation)
        if pass_ == "forward":
            with torch.no_grad():
                return depthwise_conv2d(
                    operands.x, operands.weight, stride=at.stride, padding=at.padding, dilation=at.dilation
                )
        if pass_ == "grad_input":
            return maps.grad_input(operands.grad, operands.weight, operands.x.shape, *geometry, "")
        return maps.grad_weight(operands.grad, operands.x, operands.weight.shape[2:], *geometry, "")

    return Candidate(name=AUTO, compute=compute)


def chosen_backend(problem: Problem, pass_: Pass) -> str:
    """Return the name of the backend that the dispatcher chooses for one map."""
    return maps.chosen(problem, pass_, "", machine())[2].name


def bench_map(
    problem: Problem,
    pass_: Pass,
    candidates: Sequence[Candidate],
    *,
    operands: Operands | None = None,
    budget_s: float,
    timer: Timer | None = None,
) -> MapEntry:
    """Check candidates for one map against the definition, then time those that are right.

    Args:
        problem: What to compute; the kernel is cut to the taps that meet a pixel first.
        pass_: Which map.
        candidates: Who computes it.
        operands: Inputs for `problem`; drawn if not given.
        budget_s: Seconds of timing.
        timer: Takes the samples; the device's own if not given.

    Returns:
        The entry.
    """
    whole = operands or make_operands(problem)
    runs_as, (rows, columns) = clip(problem)
    cut = whole.weight[..., rows : whole.weight.shape[-2] - rows, columns : whole.weight.shape[-1] - columns]
    inputs = replace(whole, weight=cut.contiguous())
    timer = timer or timer_for(problem.device_type, inputs.size_bytes)
    expected = oracle(runs_as, pass_, inputs)
    checked: dict[str, Result] = {}
    torch_error: float | None = None
    for candidate in candidates:
        result, error = _checked(candidate, expected, inputs, runs_as)
        if candidate.name == "aten" and error is not None:
            torch_error = error
        checked[candidate.name] = result
    largest = limit(runs_as.dtype, torch_error)
    checked = {name: _judged(result, largest) for name, result in checked.items()}
    right = [c for c in candidates if checked[c.name].relative_error is not None and not checked[c.name].is_wrong]
    sets = [inputs, *(make_operands(runs_as, seed) for seed in range(1, timer.input_sets))]
    timings = race([_contestant(c, sets, runs_as) for c in right], timer, budget_s=budget_s)
    return MapEntry(
        problem=Shape.of(problem),
        runs_as=runs_as.kernel_size,
        pass_=pass_,
        oracle=expected.how,
        error_limit=largest,
        chosen=chosen_backend(problem, pass_),
        results=tuple(
            result.with_timing(timings[name]) if name in timings else result for name, result in checked.items()
        ),
    )


def _meaningless(backend: Backend, problem: Problem) -> list[str]:
    is_interpreted = backend.name == "triton" and problem.device_type == "cpu"
    return ["on a CPU it is interpreted, not compiled"] if is_interpreted else []


def _on(backend: Backend, pass_: Pass) -> Compute:
    return lambda operands, problem: finished(operands.run(backend, pass_, problem), problem, pass_)


def _checked(
    candidate: Candidate, expected: Oracle, operands: Operands, problem: Problem
) -> tuple[Result, float | None]:
    if candidate.refusals:
        return Result(name=candidate.name, refusals=candidate.refusals), None
    try:
        error = expected.error(candidate.compute(operands, problem))
    except (RuntimeError, WidefieldError) as raised:
        return Result(name=candidate.name, failure=f"{type(raised).__name__}: {str(raised)[:200]}"), None
    return Result(name=candidate.name, relative_error=error, how=candidate.how), error


def _judged(result: Result, largest: float) -> Result:
    if result.relative_error is None or result.relative_error <= largest:
        return result
    if result.relative_error == float("inf"):
        return replace(result, relative_error=None, is_wrong=True, failure="its result is not finite, or misshapen")
    return replace(result, is_wrong=True)


def _contestant(candidate: Candidate, sets: Sequence[Operands], problem: Problem) -> Contestant:
    # A GPU's time for one image is no bound for anything: there it is mostly launching.
    is_split = problem.batch > 1 and problem.device_type == "cpu"
    first, single = sets[0].first_image(), replace(problem, batch=1)
    return Contestant(
        name=candidate.name,
        call=lambda index: candidate.compute(sets[index], problem),
        first_image=(lambda index: candidate.compute(first, single)) if is_split else None,
    )
