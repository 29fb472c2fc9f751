"""Figures of many maps: geometric means, the worst, and where it was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from widefield.bench.entries import MapEntry
from widefield.ops.backends import PASSES, Pass


@dataclass(frozen=True, kw_only=True)
class MapSummary:
    """How the dispatcher does on one map of many problems. Lower bounds count as the times they are."""

    pass_: Pass
    problems: int
    mean_speedup: float
    """Geometric mean of the faster PyTorch layout's time over the chosen backend's."""
    largest_speedup: float
    smallest_speedup: float
    slowest: MapEntry
    """Where the speed-up is smallest."""
    mean_over_best: float
    """Geometric mean of the chosen backend's time over the fastest one's."""
    worst_over_best: float
    worst_chosen: MapEntry
    """Where the choice is worst."""
    best_chosen: int
    """Problems for which the choice is within 5 % of the fastest."""
    wrong: int
    """Problems with a candidate that failed the correctness gate."""


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers; NaN of none."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def summarise(entries: Sequence[MapEntry]) -> list[MapSummary]:
    """Return the figures of each map that has a timed entry.

    Args:
        entries: Measured maps; those in which nothing was timed are left out.
    """
    return [found for pass_ in PASSES if (found := _summary(pass_, [e for e in entries if e.pass_ == pass_]))]


def _summary(pass_: Pass, entries: Sequence[MapEntry]) -> MapSummary | None:
    timed = [e for e in entries if math.isfinite(e.speedup_over_torch) and math.isfinite(e.chosen_over_best)]
    if not timed:
        return None
    slowest = min(timed, key=lambda entry: entry.speedup_over_torch)
    worst = max(timed, key=lambda entry: entry.chosen_over_best)
    return MapSummary(
        pass_=pass_,
        problems=len(timed),
        mean_speedup=geometric_mean(entry.speedup_over_torch for entry in timed),
        largest_speedup=max(entry.speedup_over_torch for entry in timed),
        smallest_speedup=slowest.speedup_over_torch,
        slowest=slowest,
        mean_over_best=geometric_mean(entry.chosen_over_best for entry in timed),
        worst_over_best=worst.chosen_over_best,
        worst_chosen=worst,
        best_chosen=sum(entry.chosen_over_best <= 1.05 for entry in timed),
        wrong=sum(bool(entry.wrong) for entry in entries),
    )
