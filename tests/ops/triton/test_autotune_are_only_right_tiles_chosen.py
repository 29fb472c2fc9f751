from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton import autotune, configs, hankel
from widefield.ops.depthwise_conv.triton.table import read_table
from widefield.ops.depthwise_conv.triton.tiles import TileConfig, use_fp32_mode

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROBLEM = Problem(
    batch=2, channels=2, height=8, width=8, kernel_size=(3, 5), padding=(1, 2), dtype=torch.float16, device_type=DEVICE
)
TILES = [TileConfig(kernel="rows", block_m=size, block_n=16, block_k=16) for size in (64, 128, 256)]
CAPABILITY = (9, 0)


def counting_down() -> autotune.Timer:
    """A clock by which each tile is faster than the one before."""
    times = iter(range(1000, 0, -1))

    def time_ms(run: object) -> float:
        assert callable(run)
        run()
        return float(next(times))

    return time_ms


def test_the_fastest_wins_and_the_first_of_equals() -> None:
    times = dict(zip(TILES, (2.0, 1.0, 1.0), strict=True))
    assert autotune.fastest(TILES, lambda _: 0.0, 1e-3, times.__getitem__) == TILES[1]


@pytest.mark.parametrize("wrong", [0.5, float("nan"), float("inf")])
def test_a_fast_but_wrong_tile_is_dropped_untimed_and_logged(wrong: float, caplog: pytest.LogCaptureFixture) -> None:
    errors = dict(zip(TILES, (0.0, wrong, 1e-4), strict=True))
    timed: list[TileConfig] = []

    def time_ms(config: TileConfig) -> float:
        timed.append(config)
        return 1.0

    with caplog.at_level(logging.WARNING, "widefield"):
        assert autotune.fastest(TILES, errors.__getitem__, 1e-3, time_ms) == TILES[0]
    assert timed == [TILES[0], TILES[2]]
    assert "dropped TileConfig(kernel='rows', block_m=128" in caplog.text
    assert "above 0.001" in caplog.text


def test_a_tile_that_fails_is_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def error(config: TileConfig) -> float:
        if config.block_m == 64:
            raise RuntimeError("out of resource: shared memory")
        return 0.0

    def time_ms(config: TileConfig) -> float:
        if config.block_m == 128:
            raise ValueError("launch failed")
        return 1.0

    with caplog.at_level(logging.WARNING, "widefield"):
        assert autotune.fastest(TILES, error, 1e-3, time_ms) == TILES[2]
    assert "RuntimeError: out of resource: shared memory" in caplog.text
    assert "ValueError: launch failed" in caplog.text


def test_no_tile_is_better_than_a_wrong_one(tmp_path: Path) -> None:
    assert autotune.fastest(TILES, lambda _: 1.0, 1e-3, lambda _: 1.0) is None
    path = tmp_path / "choices.json"
    impossible = [replace(TILES[0], block_k=7)]
    assert autotune.tune(PROBLEM, "forward", impossible, path, counting_down()) is None
    assert not path.exists()


@pytest.mark.parametrize("pass_", ["forward", "grad_input", "grad_weight"])
def test_real_kernels_are_compared_timed_and_the_choice_is_kept(pass_: Pass, tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "choices.json"
    tiles = configs.candidates(PROBLEM, pass_, CAPABILITY)[:3]
    chosen = autotune.tune(PROBLEM, pass_, tiles, path, counting_down())
    assert chosen == tiles[-1]
    assert read_table(path) == {autotune.entry_name(PROBLEM, pass_): chosen}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_of_other_types_are_judged_as_right(dtype: torch.dtype, tmp_path: Path) -> None:
    problem = replace(PROBLEM, dtype=dtype, layout="channels_last")
    tiles = [hankel.default(problem)]
    assert autotune.tune(problem, "grad_weight", tiles, tmp_path / "choices.json", counting_down()) == tiles[0]


def test_choices_are_kept_apart_by_how_float32_is_multiplied() -> None:
    problem = replace(PROBLEM, dtype=torch.float32)
    with use_fp32_mode("tf32"):
        fast = autotune.entry_name(problem, "forward")
    assert fast != autotune.entry_name(problem, "forward")
    assert fast.endswith("/tf32")


def test_nothing_is_timed_unless_the_environment_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("WIDEFIELD_AUTOTUNE", raising=False)
    assert autotune.choose(PROBLEM, "forward", CAPABILITY) is None
    assert list(tmp_path.iterdir()) == []


def test_a_choice_is_made_once_and_then_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "1")
    monkeypatch.setattr(autotune, "bench_ms", counting_down())
    monkeypatch.setattr(configs, "candidates", lambda *_: [hankel.default(PROBLEM)])
    chosen = autotune.choose(PROBLEM, "grad_weight", CAPABILITY)
    assert chosen == hankel.default(PROBLEM)
    path = autotune.cache_path()
    assert path.parent == tmp_path / "widefield"
    assert list(json.loads(path.read_text())) == [autotune.entry_name(PROBLEM, "grad_weight")]
    monkeypatch.setattr(autotune, "bench_ms", None)
    assert autotune.choose(PROBLEM, "grad_weight", CAPABILITY) == chosen


def test_the_cache_lies_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = autotune.cache_path()
    assert path.parent == tmp_path / ".cache" / "widefield"
    assert path.name.startswith("triton-")
    assert path.suffix == ".json"
