from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from widefield._core.errors import InputError
from widefield.analysis import shape_bias as counting
from widefield.analysis.categories import CATEGORIES
from widefield.analysis.shape_bias import CueReport, ShapeBias, save_reports, shape_accuracy, shape_bias

Trial = tuple[str, str, str]


def asked(trials: Sequence[Trial], seed: int = 0) -> ShapeBias:
    decisions, shapes, textures = zip(*trials, strict=True)
    return shape_bias(decisions, shapes, textures, seed=seed)


def fraction_by_definition(trials: Sequence[Trial]) -> float | None:
    """The published procedure: keep the trials that are right by either cue, and take the share of the shape."""
    right = [trial for trial in trials if trial[0] in trial[1:]]
    return sum(decision == shape for decision, shape, _ in right) / len(right) if right else None


few = st.sampled_from(CATEGORIES[:4])
conflicts = st.tuples(few, few, few).filter(lambda trial: trial[1] != trial[2])


@settings(max_examples=60, deadline=None)
@given(st.lists(conflicts, min_size=1, max_size=40))
def test_shares_are_those_of_the_definition(trials: list[Trial]) -> None:
    bias = asked(trials)
    assert bias.overall.shape_fraction == fraction_by_definition(trials)
    assert set(bias.by_shape) == {shape for _, shape, _ in trials}
    shares = []
    for category, counted in bias.by_shape.items():
        of_it = [trial for trial in trials if trial[1] == category]
        assert (counted.images, counted.shape_fraction) == (len(of_it), fraction_by_definition(of_it))
        shares += [] if counted.shape_fraction is None else [counted.shape_fraction]
    assert bias.category_mean == (pytest.approx(sum(shares) / len(shares)) if shares else None)
    assert bias.overall.shape_accuracy == sum(decision == shape for decision, shape, _ in trials) / len(trials)
    assert bias.overall.texture_accuracy == sum(decision == texture for decision, _, texture in trials) / len(trials)


def test_all_images_together_and_the_mean_of_categories_are_two_things() -> None:
    trials = [("cat", "cat", "dog")] * 3 + [("cat", "dog", "cat")] + [("oven", "dog", "bear")] * 4
    bias = asked(trials)
    assert bias.overall.shape_fraction == 3 / 4
    assert bias.category_mean == (1 + 0) / 2
    assert (bias.overall.images, bias.overall.shape_decisions, bias.overall.texture_decisions) == (8, 3, 1)
    assert bias.chance == 2 / 16


def test_without_any_decision_for_a_cue_there_is_no_share() -> None:
    bias = asked([("oven", "cat", "dog"), ("oven", "bear", "cat")])
    assert (bias.overall.shape_fraction, bias.overall.interval, bias.category_mean) == (None, None, None)
    assert (bias.overall.shape_accuracy, bias.overall.texture_accuracy) == (0, 0)


def drawn(truth: float, images: int, generator: random.Random) -> list[Trial]:
    """Images of which 60 % are decided for a cue, a share `truth` of these for the shape."""
    return [
        ("oven" if generator.random() > 0.6 else "cat" if generator.random() < truth else "dog", "cat", "dog")
        for _ in range(images)
    ]


@pytest.mark.parametrize("truth", [0.2, 0.5])
def test_the_interval_covers_a_known_share_19_times_out_of_20(truth: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "RESAMPLES", 1000)
    generator = random.Random(7)
    covered = 0
    for seed in range(1000):
        interval = asked(drawn(truth, 240, generator), seed).overall.interval
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    # Three standard deviations of 1000 intervals that hold the truth with a probability of 0.95.
    assert abs(covered - 950) <= 3 * (1000 * 0.95 * 0.05) ** 0.5


def test_the_interval_is_that_of_images_drawn_again() -> None:
    trials = drawn(0.3, 150, random.Random(1))
    outcomes = np.array([1.0 if d == s else 0.0 if d == t else np.nan for d, s, t in trials])
    rows = np.random.default_rng(0).integers(0, len(trials), size=(20_000, len(trials)))
    expected = np.quantile(np.nanmean(outcomes[rows], axis=1), [0.025, 0.975])
    assert asked(trials).overall.interval == pytest.approx(tuple(expected), abs=0.01)


def test_the_interval_depends_on_the_seed_and_on_nothing_else() -> None:
    trials = drawn(0.3, 151, random.Random(2))
    assert asked(trials, 1).overall.interval == asked(trials, 1).overall.interval
    assert asked(trials, 1).overall.interval != asked(trials, 2).overall.interval


def test_shapes_without_texture_have_an_accuracy() -> None:
    counted = shape_accuracy(["cat", "dog", "oven"], ["cat", "cat", "oven"])
    assert (counted.images, counted.accuracy, counted.by_shape) == (3, 2 / 3, {"cat": 0.5, "oven": 1.0})


def test_lists_that_cannot_be_meant_get_one_sentence() -> None:
    with pytest.raises(
        InputError, match=r"Expected one decision, one shape and one texture .*, but got 1, 2 and 1: pass"
    ):
        shape_bias(["cat"], ["cat", "dog"], ["dog"])
    with pytest.raises(InputError, match="but got 0, 0 and 0: pass lists of the same length"):
        shape_bias([], [], [])
    with pytest.raises(
        InputError, match=r"Expected images whose shape and texture differ, but got 1 whose do not: leave"
    ):
        shape_bias(["cat", "cat"], ["cat", "dog"], ["cat", "cat"])
    with pytest.raises(
        InputError, match=r"Expected one decision and one shape for each of some images, but got 1 and 0"
    ):
        shape_accuracy(["cat"], [])


def test_reports_are_kept_whole_and_never_written_over(tmp_path: Path) -> None:
    bias = asked([("cat", "cat", "dog"), ("oven", "dog", "cat")])
    path = tmp_path / "bias.json"
    save_reports(path, [CueReport(name="net", weights="random", bias=bias, edges=shape_accuracy(["cat"], ["cat"]))])
    (kept,) = json.loads(path.read_text(encoding="utf-8"))["models"]
    assert (kept["name"], kept["weights"], kept["silhouettes"]) == ("net", "random", None)
    assert kept["bias"]["overall"]["shape_fraction"] == 1.0
    assert kept["bias"]["by_shape"]["dog"]["shape_fraction"] is None
    assert kept["edges"] == {"images": 1, "accuracy": 1.0, "by_shape": {"cat": 1.0}, "uncovered": 0}
    with pytest.raises(
        InputError, match=r"Expected a new file to write, but got .*bias.json, which exists: name another"
    ):
        save_reports(path, [])
