from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from widefield.bench import calibration, records
from widefield.ops import tuning
from widefield.ops.depthwise_conv.costs import features, read_costs, regime
from widefield.ops.depthwise_conv.problem import Problem


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(count: int, *, seed: int = 0) -> list[Problem]:
        one = Problem(batch=1, channels=2, height=9, width=8, kernel_size=(5, 3), padding=(2, 1))
        return [replace(one, channels=2 + n) for n in range(count)]

    monkeypatch.setattr(calibration, "drawn_problems", drawn)


@pytest.mark.usefixtures("small")
def test_the_table_of_this_machine_is_measured_fitted_and_kept(widefield, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tmp_path / "record.json"
    outcome = widefield("tune", "--problems", 8, "--budget-s", 0.001, "--record", path)
    assert outcome.code == 0, outcome.err
    assert "typical error of a predicted time" in outcome.out
    assert "used from now on" in outcome.out
    table = tuning.costs(torch.backends.cpu.get_cpu_capability())
    assert table == read_costs(tuning.tuned_path())
    assert table.threads == torch.get_num_threads()
    problem = Problem(batch=1, channels=4, height=9, width=8, kernel_size=(5, 3), padding=(2, 1))
    assert {regime(name, "forward", problem) for name in ("aten", "fft", "dft")} <= set(table.coefficients)
    assert records.read(path).problems == 8


@pytest.mark.usefixtures("small")
def test_another_path_leaves_the_cache_alone_and_nothing_is_overwritten(widefield, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "costs.json"
    words = ("tune", "--problems", 8, "--budget-s", 0.001, "--output", path)
    assert widefield(*words).code == 0
    assert not (tmp_path / "cache").exists()
    kept = path.read_bytes()
    outcome = widefield(*words)
    assert outcome.code == 2
    assert "Expected a path for a file that is not there yet, in a folder that is, but got" in outcome.err
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--problems", 3), "Expected at least 8 problems, but got 3"),
        (("--budget-s", 0), "Expected a positive number of seconds, but got 0.0"),
    ],
)
def test_too_little_to_measure_is_refused(widefield, words: tuple[object, ...], text: str) -> None:
    outcome = widefield("tune", *words)
    assert outcome.code == 2
    assert text in outcome.err


def test_drawn_problems_differ_fit_their_bounds_and_come_again() -> None:
    problems = calibration.drawn_problems(60, seed=3)
    assert problems == calibration.drawn_problems(60, seed=3)
    assert problems != calibration.drawn_problems(60, seed=4)
    assert len(set(problems)) == 60
    assert {p.dtype for p in problems} == {torch.float32, torch.bfloat16, torch.float64}
    assert {p.layout for p in problems} == {"contiguous", "channels_last"}
    assert any(p.width == 1 for p in problems)


def test_the_fit_finds_the_coefficients_that_made_the_times() -> None:
    from widefield.bench.entries import MapEntry, Result, Shape
    from widefield.bench.environment import environment
    from widefield.bench.records import Record

    truth = (0.02, 0.3, 0.0, 0.11, 0.0, 0.0, 2.0, 0.05)
    problems = [p for p in calibration.drawn_problems(150) if p.dtype == torch.float32 and p.width > 1]
    problems = [p for p in problems if p.layout == "contiguous" and p.stride == (1, 1)]
    entries = tuple(
        MapEntry(
            problem=Shape.of(problem),
            runs_as=problem.kernel_size,
            pass_="forward",
            oracle="",
            error_limit=1.0,
            chosen="fft",
            results=(
                Result(
                    name="fft",
                    median_ms=sum(
                        k * v for k, v in zip(truth, features("fft", calibration.clip(problem)[0]), strict=True)
                    ),
                ),
            ),
        )
        for problem in problems
    )
    record = Record(kind="calibration", environment=environment("cpu"), planned=len(problems), maps=entries)
    table = calibration.fit(record)
    assert table.coefficients["fft/forward/float32"] == pytest.approx(truth, abs=1e-6)
    assert calibration.typical_error(table, record) < 1e-6
