from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bench.bench_support import entry, environment

from widefield._core.errors import InputError
from widefield.bench import records, report
from widefield.bench.entries import ModelEntry, Result
from widefield.bench.records import Record
from widefield.ops.backends import PASSES

ROOT = Path(__file__).parents[2]
TIMES = {"aten": -40.0, "channels_last": 8.0, "fft": 2.0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    results = tmp_path / "benchmarks" / "results"
    (results / "gpu").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (results / "other.json").write_text('{"rows": []}')
    swept = tuple(entry(pass_, TIMES, "fft", kernel_size=k) for k in (3, 13, 31) for pass_ in PASSES)
    of = environment()
    records.write(Record(kind="kernel_sizes", environment=of, planned=3, maps=swept), results / "k.json")
    records.write(Record(kind="grid", environment=of, planned=9, maps=swept), results / "grid.json")
    records.write(Record(kind="operator", environment=of, planned=1, maps=swept[:3]), results / "gpu" / "peers.json")
    models = tuple(
        ModelEntry(
            model=name,
            form="merged" if backend else "as it is",
            mode="inference",
            backend=backend,
            batch=2,
            image_size=224,
            dtype="float32",
            device="cpu",
            layout="contiguous",
            is_compiled=False,
            parameters=1,
            result=Result(name=name, median_ms=ms, q10_ms=ms, q90_ms=ms, rounds=3),
        )
        for name, backend, ms in (("ours", "auto", 10.0), ("theirs", "", 25.0))
    )
    records.write(Record(kind="models", environment=of, planned=2, models=models), results / "models.json")
    return tmp_path


def test_the_committed_page_is_what_the_records_give() -> None:
    results = ROOT / report.RESULTS
    text = report.page(report.find_records(results), report.read_resources(results))
    assert (ROOT / report.PAGE).read_text(encoding="utf-8") == text
    for image in re.findall(r"\]\(images/(.+?)\)", text):
        assert (ROOT / report.IMAGES / image).is_file(), image


def test_page_and_figures_are_made_and_checked(root: Path) -> None:
    assert report.main(["--root", str(root), "--check"]) == 1
    assert report.main(["--root", str(root)]) == 0
    assert report.main(["--root", str(root), "--check"]) == 0
    images = sorted((root / "docs" / "images").iterdir())
    assert [image.name for image in images] == ["grid.png", "k.png"]
    assert all(image.read_bytes().startswith(b"\x89PNG") and image.stat().st_size > 10_000 for image in images)
    records_folder = root / report.RESULTS
    (records_folder / "k.json").unlink()
    assert report.main(["--root", str(root), "--check"]) == 1


def test_the_page_says_what_was_measured(root: Path) -> None:
    report.main(["--root", str(root)])
    text = (root / report.PAGE).read_text()
    assert "### gpu/peers" in text
    assert "| 31 | grad_weight | at least 40 | 8 | 2 | fft | 4.00 |" in text
    assert "Partial: 3 of 9 problems." in text
    assert "a CPU (AVX2), 2 threads, torch 2.15.0, Triton 3.9.0, Python 3.11.7, commit 0123456789, 2026-11-21." in text
    assert re.search(r"\| ours \| merged \| inference \| auto \|.*\| 200\.0 \| 2\.50 \|", text)
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_compiled_kernels_are_listed_if_they_were_recorded(root: Path) -> None:
    kernels = [{"name": "rows", "registers": 128, "spills": 0}]
    (root / report.RESULTS / report.RESOURCES).write_text(json.dumps({"triton": "3.9.0", "kernels": kernels}))
    report.main(["--root", str(root)])
    text = (root / report.PAGE).read_text()
    assert "| rows | 128 | 0 |" in text
    assert "triton 3.9.0" in text


def test_without_records_the_page_says_how_to_make_them() -> None:
    text = report.page([])
    assert text.count("No record yet: `widefield bench ") == 4


def test_a_file_that_is_no_json_is_named(root: Path) -> None:
    (root / report.RESULTS / "broken.json").write_text("{")
    with pytest.raises(
        InputError, match=r"Expected JSON files among the results, but got .*broken\.json, which is none"
    ):
        report.find_records(root / report.RESULTS)
