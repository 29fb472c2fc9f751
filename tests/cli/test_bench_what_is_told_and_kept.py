from __future__ import annotations

from pathlib import Path

import pytest

from widefield.bench import cases, records, sweep
from widefield.ops.depthwise_conv.order import BACKENDS
from widefield.ops.depthwise_conv.transposed import TransposedBackend

QUICK = ("--budget-s", 0.01)


def test_op_tells_every_backend_and_keeps_a_record(widefield, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "op.json"
    outcome = widefield("bench", "op", 2, 3, 8, 8, 13, 5, *QUICK, "-o", path)
    assert outcome.code == 0, outcome.err
    for name in [backend.name for backend in BACKENDS if backend.name != "reference"] + ["auto"]:
        assert name in outcome.out
    assert "depthwise 13x5 on N2 C3 8x8, float32, contiguous, cpu" in outcome.out
    assert "it computes grad_weight alone" in outcome.out
    assert records.read(path).kind == "operator"
    kept = path.read_bytes()
    outcome = widefield("bench", "op", 2, 3, 8, 8, 5, *QUICK, "-o", path)
    assert outcome.code == 2
    assert "Expected a new file to write" in outcome.err
    assert path.read_bytes() == kept


def test_op_says_that_dead_taps_are_cut(widefield) -> None:
    assert "timed as 9x9: the other taps meet no pixel" in widefield("bench", "op", 1, 2, 5, 5, 31, *QUICK).out


def test_a_wrong_backend_makes_the_command_fail(widefield, tmp_path: Path, monkeypatch) -> None:
    right = TransposedBackend.forward
    monkeypatch.setattr(TransposedBackend, "forward", lambda self, *operands: 2 * right(self, *operands))
    outcome = widefield("bench", "op", 2, 3, 8, 8, 5, *QUICK, "-o", tmp_path / "op.json")
    assert outcome.code == 1
    assert (
        "Expected every candidate to compute the right thing, but transposed did not and was not timed" in outcome.err
    )
    assert "WRONG" in outcome.out
    assert records.read(tmp_path / "op.json").maps[0].wrong == ("transposed",)


def test_sweep_over_kernel_sizes_can_be_taken_up(widefield, tmp_path: Path) -> None:
    words = ("bench", "sweep", "K", 1, 2, 6, 6, "--kernel-sizes", 3, 5, *QUICK, "--output", tmp_path / "k.json")
    assert widefield(*words).code == 0
    first = (tmp_path / "k.json").read_bytes()
    outcome = widefield(*words)
    assert outcome.code == 0
    assert (tmp_path / "k.json").read_bytes() == first
    assert "depthwise 5x5 on N1 C2 6x6" in outcome.out


def test_sweep_over_the_grid_is_summed_up(widefield, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sweep, "grid", lambda batches, **rest: cases.grid(batches, **rest)[:2])
    outcome = widefield("bench", "sweep", "grid", "--batches", 1, *QUICK, "-o", tmp_path / "grid.json")
    assert outcome.code == 0, outcome.err
    assert "speed-up" in outcome.out
    assert "grad_weight: least speed-up at depthwise" in outcome.out
    assert records.read(tmp_path / "grid.json").is_complete


def test_model_tells_the_ratio(widefield, tmp_path: Path) -> None:
    words = ("bench", "model", "replknet_nano", "--against", "resnet10t", "--image-size", 32, *QUICK)
    outcome = widefield(*words, "--backend", "auto", "aten", "-o", tmp_path / "model.json")
    assert outcome.code == 0, outcome.err
    assert "ratio to the last row" in outcome.out
    kept = records.read(tmp_path / "model.json").models
    assert [(entry.form, entry.backend) for entry in kept] == [("merged", "auto"), ("merged", "aten"), ("as it is", "")]


@pytest.mark.parametrize("words", [("--no-merged",), ("--merged", "False")])
def test_model_flags_stand_alone_or_have_a_value(widefield, tmp_path: Path, words: tuple[str, ...]) -> None:
    words = ("bench", "model", "replknet_nano", *words, "--image-size", 32, *QUICK, "-o", tmp_path / "model.json")
    assert widefield(*words).code == 0
    assert records.read(tmp_path / "model.json").models[0].form == "branched"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("swep",), "Expected the name of a benchmark, but got 'swep': did you mean 'sweep'"),
        (("sweep",), "Expected the name of a sweep, but got '': use one of K, grid"),
        (("op", 1, 2, 8, 8, 4), "Expected an odd kernel size, but got 4x4: add or take 1"),
        (("op", 0, 2, 8, 8, 5), "Expected positive sizes"),
        (("op", 1, 2, 8, 8, 5, "-o", "no/such/op.json"), "Expected a folder to write to, but got no/such"),
        (("op", 1, 2, 8, 8, 5, "--budget", 1), "Expected an option of widefield bench op, but got --budget"),
        (("model", "replknet_31"), "Expected the name of a model, but got 'replknet_31'"),
    ],
)
def test_bad_words_get_one_sentence(widefield, words: tuple[object, ...], told: str) -> None:
    outcome = widefield("bench", *words)
    assert outcome.code == 2
    assert told in outcome.err


def test_a_gpu_that_is_not_here_is_refused(widefield, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = widefield("bench", "op", 1, 2, 8, 8, 5, "--device", "cuda")
    assert "Expected a device that is here, but got 'cuda' without a GPU or driver: use --device cpu" in outcome.err


def test_without_words_bench_says_what_there_is(widefield) -> None:
    outcome = widefield("bench")
    assert outcome.code == 0
    assert "widefield bench sweep grid" in outcome.out
