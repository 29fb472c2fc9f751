from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from widefield._core.errors import InputError
from widefield.ops.depthwise_conv.problem import Layout, Problem
from widefield.ops.depthwise_conv.triton import autotune, cases, configs, table
from widefield.ops.depthwise_conv.triton.backend import tiles_for
from widefield.ops.depthwise_conv.triton.cost import cost
from widefield.ops.depthwise_conv.triton.geometry import as_forward
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

HOPPER = (9, 0)


def problem_of(
    channels: int, side: int, kernel: tuple[int, int], *, batch: int = 64, layout: Layout = "contiguous"
) -> Problem:
    return Problem(
        batch=batch,
        channels=channels,
        height=side,
        width=side,
        kernel_size=kernel,
        padding=(kernel[0] // 2, kernel[1] // 2),
        dtype=torch.bfloat16,
        device_type="cuda",
        layout=layout,
    )


@pytest.mark.parametrize(
    ("problem", "kernel"),
    [
        (problem_of(128, 56, (31, 31)), "rows"),
        (problem_of(128, 256, (31, 31), batch=2), "rows"),
        (problem_of(124, 56, (51, 5)), "columns"),
        (problem_of(124, 56, (5, 51)), "rows"),
        (problem_of(1024, 7, (13, 13)), "planes"),
        (problem_of(512, 14, (27, 27)), "planes"),
        (problem_of(128, 56, (7, 7), layout="channels_last"), "channels_last"),
        (problem_of(128, 56, (31, 31), layout="channels_last"), "rows"),
        (problem_of(127, 56, (7, 7), layout="channels_last"), "rows"),
    ],
    ids=str,
)
def test_the_shape_decides_the_kernel(problem: Problem, kernel: str) -> None:
    assert configs.default(problem, "forward", HOPPER).kernel == kernel
    assert configs.default(problem, "grad_input", HOPPER).kernel == kernel


def test_every_problem_has_tiles_that_fit_and_none_twice() -> None:
    for side in (1, 5, 16, 57, 300):
        for kernel in ((1, 1), (1, 31), (31, 1), (101, 101)):
            for dtype in (torch.bfloat16, torch.float32):
                problem = replace(problem_of(8, side, kernel, batch=1, layout="channels_last"), dtype=dtype)
                for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0)):
                    found = configs.candidates(problem, "forward", capability)
                    assert len(found) == len(set(found)) > 0
                    limit = configs.shared_memory_bytes(capability)
                    for config in found:
                        tile = config.block_k * (config.block_m + config.block_n) * config.num_stages
                        assert tile * dtype.itemsize <= limit


def test_few_images_take_low_tiles() -> None:
    few, many = (configs.default(problem_of(32 * n, 56, (31, 31), batch=n), "forward", HOPPER) for n in (1, 64))
    assert few.block_m < many.block_m


def test_taps_that_meet_no_row_are_left_out_where_that_saves() -> None:
    problem = problem_of(62, 56, (101, 101))
    chosen = configs.default(problem, "forward", HOPPER)
    assert chosen.rows > 0
    assert cost(as_forward(problem, "forward"), chosen) < cost(problem, replace(chosen, rows=0))


def test_the_weight_gradient_has_tiles_too() -> None:
    problem = problem_of(128, 56, (31, 31))
    assert configs.default(problem, "grad_weight", HOPPER) in configs.candidates(problem, "grad_weight", HOPPER)


def test_a_measured_table_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    problem, same_bucket = problem_of(13, 51, (29, 31)), problem_of(99, 64, (17, 32), batch=33)
    slower = TileConfig(kernel="rows", block_m=64, block_n=16, block_k=16)
    assert configs.choose_tiles(problem, "forward", (9, 9)) == configs.default(problem, "forward", (9, 9))
    table.write_table(table.path_of((9, 8)), {table.key(problem, "forward"): slower})
    assert configs.choose_tiles(problem, "forward", (9, 8)) == slower
    assert configs.choose_tiles(same_bucket, "forward", (9, 8)) == slower
    assert configs.choose_tiles(problem, "grad_input", (9, 8)) != slower


def test_the_roll_kernel_is_taken_only_where_it_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "FOLDER", tmp_path)
    fits, too_large = problem_of(11, 50, (31, 31)), replace(problem_of(11, 50, (31, 31)), dilation=(2, 2))
    roll = TileConfig(kernel="roll", block_m=64, block_n=64, block_k=64)
    table.write_table(table.path_of((9, 7)), {table.key(fits, "forward"): roll})
    assert table.measured(too_large, "forward", (9, 7)) == roll
    assert configs.choose_tiles(too_large, "forward", (9, 7)).kernel != "roll"


def test_tiles_timed_on_request_come_before_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(13, 51, (29, 31))
    timed = TileConfig(kernel="rows", block_m=64, block_n=16, block_k=16)
    monkeypatch.setattr(autotune, "choose", lambda problem, pass_, capability: timed)
    monkeypatch.delenv("WIDEFIELD_AUTOTUNE", raising=False)
    untimed = configs.choose_tiles(problem, "forward", HOPPER)
    assert tiles_for(problem, "forward", HOPPER) == untimed != timed
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "1")
    assert tiles_for(problem, "forward", HOPPER) == timed
    monkeypatch.setattr(autotune, "choose", lambda problem, pass_, capability: None)
    assert tiles_for(problem, "forward", HOPPER) == untimed


def test_a_table_keeps_what_it_had(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sm_90.json"
    first, second = (TileConfig(kernel="rows", block_m=m, block_n=16, block_k=16) for m in (64, 128))
    table.write_table(path, {"b": first})
    table.write_table(path, {"a": second})
    assert table.read_table(path) == {"a": second, "b": first}
    assert table.read_table(tmp_path / "none.json") == {}


def test_an_entry_of_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sm_90.json"
    path.write_text(json.dumps({"here": {"kernel": "rows", "speed": 3}}))
    with pytest.raises(InputError, match="but got kernel, speed at 'here': measure the table again"):
        table.read_table(path)


def test_every_layer_of_the_record_has_its_compiles_and_each_a_name_of_its_own() -> None:
    found = configs.compile_cases(HOPPER)
    assert len({case.name for case in found}) == len(found)
    assert {case.name.split()[0] for case in found} == {"rows", "columns", "planes", "channels_last"}
    for case in found:
        names = set(case.signature) | set(case.constexprs)
        assert names == set(case.kernel.arg_names)
    assert cases.layer("PeLK-B-101 stage 1").kernel_size == (101, 101)
