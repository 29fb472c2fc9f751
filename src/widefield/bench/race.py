"""Several callables timed in one process, in turns, so that their ratios hold on a noisy machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from widefield.bench.timers import Call, Sampler, Timer

HOPELESS = 3.0
"""A candidate that takes this many times as long as the best is not timed in full."""

LEAST_ROUNDS, MOST_ROUNDS = 3, 40


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One candidate."""

    name: str
    call: Call
    """The computation in full."""
    first_image: Call | None = None
    """The same on the first image alone; none if the batch is one image."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What was measured of one candidate: quantiles of its samples, or a lower bound with how it was got."""

    median_ms: float | None = None
    q10_ms: float | None = None
    q90_ms: float | None = None
    rounds: int = 0
    at_least_ms: float | None = None
    how: str = ""


def race(contestants: Sequence[Contestant], timer: Timer, *, budget_s: float) -> dict[str, Timing]:
    """Time candidates against each other.

    Every candidate is run on the first image first, which is its warm-up as well. One whose time for that is already
    `HOPELESS` times the best candidate's time for the whole batch is not run in full: its time for one image is
    recorded as a lower bound. The others take turns, in an order that rotates. One that turns out to be `HOPELESS`
    times slower leaves after its first round if a second would overrun its share of the budget.

    Args:
        contestants: The candidates; each has computed the right thing already.
        timer: Of the device they run on.
        budget_s: Seconds for the timed rounds of all candidates together. Each runs at least once whatever it takes,
            and `LEAST_ROUNDS` times if it is not hopeless.

    Returns:
        The timing of each candidate by its name.
    """
    if not contestants:
        return {}
    share_s = budget_s / len(contestants)
    probes = {c.name: _warm(c.first_image or c.call, timer, share_s) for c in contestants}
    timings: dict[str, Timing] = {}
    firsts: dict[str, float] = {}
    entered: list[Contestant] = []
    for contestant in sorted(contestants, key=lambda c: probes[c.name].seconds):
        probe = probes[contestant.name]
        best = min(firsts.values(), default=probe.seconds)
        if contestant.first_image is not None and probe.seconds > HOPELESS * best:
            how = f"{probe.words} of 1 image, above {HOPELESS:g} times the best time of the batch"
            timings[contestant.name] = Timing(at_least_ms=1000 * probe.seconds, how=how)
            continue
        whole = probe if contestant.first_image is None else _warm(contestant.call, timer, share_s)
        firsts[contestant.name] = whole.seconds
        entered.append(contestant)
    samples = _rounds(entered, timer, firsts, budget_s)
    return timings | {name: summary(values) for name, values in samples.items()}


def summary(samples_s: Sequence[float]) -> Timing:
    """Return median, 0.1 and 0.9 quantile (linear between samples) of times in seconds."""
    return Timing(
        median_ms=1000 * quantile(samples_s, 0.5),
        q10_ms=1000 * quantile(samples_s, 0.1),
        q90_ms=1000 * quantile(samples_s, 0.9),
        rounds=len(samples_s),
    )


def quantile(values: Sequence[float], q: float) -> float:
    """Return the quantile `q` of some values, linear between the two nearest."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True, kw_only=True)
class _Run:
    seconds: float
    words: str


def _warm(call: Call, timer: Timer, share_s: float) -> _Run:
    """Take the shorter of two runs, so that a first run's preparations are no part of it; of one if that is long."""
    first = timer.once(call)
    if first > share_s:
        return _Run(seconds=first, words="the only run")
    return _Run(seconds=min(first, timer.once(call)), words="the shorter of two runs")


def _rounds(
    contestants: Sequence[Contestant], timer: Timer, firsts: dict[str, float], budget_s: float
) -> dict[str, list[float]]:
    best = min(firsts.values())
    share_s = budget_s / len(contestants)
    samplers: dict[str, Sampler] = {c.name: timer.sampler(c.call, firsts[c.name]) for c in contestants}
    samples: dict[str, list[float]] = {c.name: [] for c in contestants}
    spent_s = dict.fromkeys(samples, 0.0)
    for turn in range(MOST_ROUNDS):
        ahead = (turn + 1) / max(turn, 1)
        if turn >= LEAST_ROUNDS and sum(spent_s.values()) * ahead > budget_s:
            break
        names = [n for n in samples if turn == 0 or firsts[n] <= HOPELESS * best or spent_s[n] * ahead <= share_s]
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            began = timer.now()
            samples[name].append(samplers[name]())
            spent_s[name] += timer.now() - began
    return samples
