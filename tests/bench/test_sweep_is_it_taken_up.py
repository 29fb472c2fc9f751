from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bench.bench_support import problem

from widefield._core.errors import InputError
from widefield.bench import records, sweep
from widefield.bench.sweep import sweep_grid, sweep_kernel_sizes
from widefield.ops.depthwise_conv.order import BACKENDS

TORCH_ALONE = BACKENDS[:2]
PROBLEMS = [problem(size=size) for size in (5, 6, 7)]


def swept(path: Path | None, problems: list, told: list | None = None) -> records.Record:
    return sweep.sweep(
        "grid",
        problems,
        passes=("forward",),
        budget_s=0.005,
        backends=TORCH_ALONE,
        path=path,
        progress=None if told is None else lambda *words: told.append(words),
    )


class Killed(Exception):
    pass


def test_a_broken_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch) -> None:
    path, measured, whole = tmp_path / "grid.json", [], sweep.bench_map

    def measure(at, *rest, **options):
        if len(measured) == 2:
            raise Killed
        measured.append(at)
        return whole(at, *rest, **options)

    monkeypatch.setattr(sweep, "bench_map", measure)
    with pytest.raises(Killed):
        swept(path, PROBLEMS)
    partial = records.read(path)
    assert (partial.problems, partial.planned, partial.is_complete) == (2, 3, False)
    measured.clear()
    finished = swept(path, PROBLEMS)
    assert measured == PROBLEMS[2:]
    assert finished.is_complete
    assert finished.maps[:2] == partial.maps
    assert records.read(path).is_complete
    measured.clear()
    assert swept(path, PROBLEMS).problems == 3
    assert measured == []


def test_progress_is_told_before_each_problem_and_at_the_end() -> None:
    told: list = []
    swept(None, PROBLEMS[:2], told)
    assert [words[:2] for words in told] == [(0, 2), (1, 2), (2, 2)]
    assert "5x5 on N2 C3 5x5" in told[0][2]


def test_the_record_of_another_sweep_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    swept(path, PROBLEMS[:1])
    kept = path.read_bytes()
    with pytest.raises(InputError, match=r"a record of this sweep of 2 problems to take up, but got .* of 1 problems"):
        swept(path, PROBLEMS[:2])
    assert path.read_bytes() == kept


def test_the_record_of_another_machine_is_not_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    record = swept(path, PROBLEMS[:1])
    other = replace(record, environment=replace(record.environment, threads=99))
    records.write(other, path)
    with pytest.raises(InputError, match=r"of this machine, software and commit .* with threads 99: name a new file"):
        swept(path, PROBLEMS[:1])


def test_kernel_sizes_are_swept_and_even_ones_refused() -> None:
    record = sweep_kernel_sizes(2, 6, 7, batch=1, kernel_sizes=(3, 15), passes=("forward",), budget_s=0.005)
    assert [entry.problem.kernel_size for entry in record.maps] == [(3, 3), (15, 15)]
    assert record.maps[1].runs_as == (11, 13)
    assert record.kind == "kernel_sizes"
    with pytest.raises(InputError, match=r"Expected odd kernel sizes, but got \[4\]: add or take 1 from each"):
        sweep_kernel_sizes(2, 6, 6, kernel_sizes=(3, 4))


def test_a_grid_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="Expected at least one problem, but got none"):
        sweep_grid(batches=())
