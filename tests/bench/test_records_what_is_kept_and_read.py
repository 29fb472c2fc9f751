from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from bench.bench_support import entry, environment, problem

from widefield._core.errors import InputError
from widefield.bench import records
from widefield.bench.entries import ModelEntry, Result, Shape
from widefield.bench.environment import environment as here
from widefield.bench.records import Record
from widefield.bench.summary import geometric_mean, summarise

RECORD = Record(
    kind="grid",
    environment=environment(),
    planned=2,
    maps=(
        entry("forward", {"aten": 8.0, "channels_last": -30.0, "fft": 2.0}, "fft"),
        entry("forward", {"aten": 1.0, "channels_last": 3.0, "fft": 2.0}, "aten", kernel_size=3),
        entry("grad_weight", {"aten": 8.0, "channels_last": 6.0, "fft": 9.0}, "fft"),
    ),
)
MODEL = ModelEntry(
    model="a",
    form="merged",
    mode="inference",
    backend="auto",
    batch=4,
    image_size=224,
    dtype="float32",
    device="cpu",
    layout="contiguous",
    is_compiled=False,
    parameters=10,
    result=Result(name="a auto", median_ms=20.0, q10_ms=19.0, q90_ms=21.0, rounds=3),
)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    for record in (RECORD, Record(kind="models", environment=environment(), planned=1, models=(MODEL,))):
        records.write(record, tmp_path / "record.json")
        assert records.read(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_record_is_plain_json_with_a_line_for_each_entry(tmp_path: Path) -> None:
    records.write(RECORD, tmp_path / "record.json")
    text = (tmp_path / "record.json").read_text()
    values = json.loads(text)
    assert values["schema"] == records.SCHEMA
    assert values["environment"]["commit"] == "0123456789abcdef"
    assert sum('"pass_"' in line for line in text.splitlines()) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "Expected a record of schema 1, but got schema 2 in R: update widefield"),
        ({"schema": 0}, "but got schema 0 in R: write the record anew"),
        ({"kind": "gird"}, "Expected kind to be one of 'operator'"),
        ({"environment": None}, "environment"),
        ({"surplus": 1}, "Expected the name of a field of the config, but got 'surplus'"),
        ({"maps": [3]}, "Expected entries that are JSON objects, but got 3 in R"),
        ({"maps": [{"pas": 1}]}, "Expected the name of a field of an entry in R, but got 'pas'"),
        ({"maps": [{"pass_": "forward"}]}, "Expected a record with all its fields, but got R without"),
        ({"maps": [{"results": [{"name": "a", "median_ms": "x"}]}]}, "Expected median_ms to be a number, but got 'x'"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_in_a_sentence(tmp_path: Path, change: dict, words: str) -> None:
    records.write(RECORD, tmp_path / "record.json")
    values = json.loads((tmp_path / "record.json").read_text())
    with pytest.raises(InputError) as caught:
        records.validated(values | change, "R")
    assert words in str(caught.value)


def test_a_record_without_a_number_says_which(tmp_path: Path) -> None:
    values = {"schema": 1, "kind": "grid", "environment": vars(environment())}
    with pytest.raises(InputError, match=r"R without .*planned.*: write the record anew"):
        records.validated(values, "R")


def test_no_file_no_json_and_other_json_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(InputError, match="no file at"):
        records.read(path)
    path.write_text("{")
    with pytest.raises(InputError, match="which is not JSON"):
        records.read(path)
    path.write_text('{"rows": []}')
    with pytest.raises(InputError, match="which says no schema and kind"):
        records.read(path)


def test_ratios_take_lower_bounds_as_times() -> None:
    wide, narrow, badly = RECORD.maps
    assert wide.speedup_over_torch == 4.0
    assert wide.chosen_over_best == 1.0
    assert narrow.speedup_over_torch == 1.0
    assert badly.chosen_over_best == 1.5
    assert badly.speedup_over_torch == pytest.approx(2 / 3)
    assert MODEL.images_per_s == 200.0


def test_a_summary_has_means_and_the_worst() -> None:
    forward, weight = summarise(RECORD.maps)
    assert (forward.pass_, forward.problems) == ("forward", 2)
    assert forward.mean_speedup == pytest.approx(2.0)
    assert forward.smallest_speedup == 1.0
    assert forward.slowest == RECORD.maps[1]
    assert forward.best_chosen == 2
    assert (weight.worst_over_best, weight.worst_chosen) == (1.5, RECORD.maps[2])
    assert summarise([]) == []
    assert math.isnan(geometric_mean([]))


def test_a_problem_survives_its_plain_form() -> None:
    for at in (problem(), problem(stride=(2, 2), layout="channels_last")):
        assert Shape.of(at).problem() == at


def test_the_environment_names_machine_versions_and_commit() -> None:
    import torch

    found = here()
    assert found.torch == torch.__version__
    assert found.threads == torch.get_num_threads()
    assert found.device
    assert found.is_comparable(replace(found, date="later"))
    assert not found.is_comparable(replace(found, threads=found.threads + 1))
