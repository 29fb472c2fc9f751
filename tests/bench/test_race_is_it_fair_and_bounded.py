from __future__ import annotations

import pytest
from bench.bench_support import Clock

from widefield.bench.race import LEAST_ROUNDS, MOST_ROUNDS, Contestant, quantile, race, summary
from widefield.bench.timers import MOST_REPEATS, CpuTimer, repeats_for, sets_beyond_cache


def test_medians_are_the_times_that_the_calls_take() -> None:
    clock = Clock()
    timings = race([clock.contestant("a", 0.1), clock.contestant("b", 0.2)], clock.timer(), budget_s=3.05)
    assert timings["a"].median_ms == pytest.approx(100)
    assert timings["b"].median_ms == pytest.approx(200)
    assert timings["a"].rounds == timings["b"].rounds == 10


def test_the_candidates_take_turns_and_who_begins_rotates() -> None:
    clock, begun = Clock(), []

    def call(name: str) -> Contestant:
        work = clock.work(name, 0.125)
        return Contestant(name=name, call=lambda index: (begun.append(name), work(index)))

    race([call("a"), call("b"), call("c")], clock.timer(), budget_s=1.2)
    warm_up = 6
    assert begun[warm_up:] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_the_first_run_is_no_sample() -> None:
    clock = Clock()
    slow_start = Contestant(name="a", call=clock.work("a", 0.1, first=5.0))
    timing = race([slow_start], clock.timer(), budget_s=10.0)["a"]
    assert timing.q90_ms == pytest.approx(100)


def test_a_hopeless_candidate_is_a_lower_bound_that_says_how_it_was_got() -> None:
    clock = Clock()
    fast, hopeless = clock.contestant("fast", 0.1, 0.02), clock.contestant("hopeless", 16.0, 0.5)
    timings = race([hopeless, fast], clock.timer(), budget_s=2.05)
    assert "hopeless" not in clock.runs
    assert timings["hopeless"].median_ms is None
    assert timings["hopeless"].at_least_ms == pytest.approx(500)
    assert timings["hopeless"].how == "the shorter of two runs of 1 image, above 3 times the best time of the batch"
    assert timings["fast"].rounds == 20


def test_a_lower_bound_takes_no_first_run_for_the_time() -> None:
    clock = Clock()
    fast = clock.contestant("fast", 0.1, 0.02)
    cold = Contestant(name="cold", call=clock.work("cold", 0.2), first_image=clock.work("cold 1", 0.05, first=0.9))
    timings = race([fast, cold], clock.timer(), budget_s=2.0)
    assert timings["cold"].median_ms == pytest.approx(200)


def test_a_single_long_run_is_told_as_such() -> None:
    clock = Clock()
    timings = race([clock.contestant("a", 0.1, 0.1), clock.contestant("b", 9.0, 3.0)], clock.timer(), budget_s=1.0)
    assert timings["b"].how.startswith("the only run of 1 image")
    assert clock.runs["b first image"] == 1


def test_a_slow_candidate_leaves_the_rounds_when_its_share_is_spent() -> None:
    clock = Clock()
    timings = race([clock.contestant("a", 0.1), clock.contestant("slow", 1.0)], clock.timer(), budget_s=1.5)
    assert timings["slow"].rounds == 1
    assert timings["slow"].median_ms == pytest.approx(1000)
    assert timings["a"].rounds >= LEAST_ROUNDS


@pytest.mark.parametrize(("seconds", "rounds"), [(10.0, LEAST_ROUNDS), (0.01, MOST_ROUNDS)])
def test_rounds_follow_the_budget_within_limits(seconds: float, rounds: int) -> None:
    clock = Clock()
    assert race([clock.contestant("a", seconds)], clock.timer(), budget_s=1.0)["a"].rounds == rounds


def test_short_calls_are_repeated_within_a_sample() -> None:
    clock = Clock()
    timing = race([clock.contestant("a", 1e-4)], clock.timer(), budget_s=1.0)["a"]
    assert timing.median_ms == pytest.approx(0.1)
    assert clock.runs["a"] == 2 + 20 * timing.rounds
    assert [repeats_for(s) for s in (1.0, 1e-3, 0.0)] == [1, 2, MOST_REPEATS]


def test_nobody_to_time_is_no_timing() -> None:
    assert race([], CpuTimer(), budget_s=1.0) == {}


def test_quantiles_lie_between_the_samples() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.1) == pytest.approx(1.0)
    assert summary([0.002]).q10_ms == summary([0.002]).q90_ms == 2.0


def test_input_sets_outgrow_the_cache() -> None:
    assert sets_beyond_cache(10, 50) == 8
    assert sets_beyond_cache(40, 50) == 3
    assert sets_beyond_cache(1000, 50) == 1
