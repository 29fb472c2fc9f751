from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch

from widefield.ops import explain, tuning
from widefield.ops.backends import PASSES
from widefield.ops.depthwise_conv.costs import CostTable, features, read_costs, regime, shipped_costs
from widefield.ops.depthwise_conv.order import CPU_BACKENDS, HANDICAPS, Machine, machine, order, predictions
from widefield.ops.depthwise_conv.problem import Problem

AVX2, AVX512 = (Machine(name, 2, "highest") for name in ("AVX2", "AVX512"))


def problem(batch: int, channels: int, size: int, kernel_size: int, dtype: torch.dtype = torch.float32) -> Problem:
    half = kernel_size // 2
    return Problem(
        batch=batch,
        channels=channels,
        height=size,
        width=size,
        kernel_size=(kernel_size, kernel_size),
        padding=(half, half),
        dtype=dtype,
    )


@pytest.mark.parametrize("here", [AVX2, AVX512])
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("kernel_size", [3, 5, 13, 31, 101])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_both_shipped_tables_know_every_backend_that_can_run(
    here: Machine, pass_: str, kernel_size: int, dtype: torch.dtype
) -> None:
    times = predictions(problem(4, 96, 56, kernel_size, dtype), pass_, here)  # type: ignore[arg-type]
    lacking = {"forward": {"correlation"}, "grad_input": {"correlation", "transposed"}, "grad_weight": {"transposed"}}
    assert {name for name, time in times.items() if math.isinf(time)} == lacking[pass_]
    assert all(time > 0 for time in times.values())


def test_a_larger_problem_is_never_predicted_to_be_faster() -> None:
    for pass_ in PASSES:
        for backend in CPU_BACKENDS:
            small, large = (shipped_costs("AVX2").predict(backend, pass_, problem(n, 64, 28, 13), 1) for n in (1, 16))
            assert small <= large or math.isinf(large)


def test_twice_the_threads_halve_all_but_the_constant() -> None:
    table = CostTable(source="", capability="", threads=1, coefficients={"fft/forward/float32": (1.0,) + (0.5,) * 7})
    one, two = (table.predict("fft", "forward", problem(4, 64, 28, 13), threads) for threads in (1, 2))
    assert one - 1 == pytest.approx(2 * (two - 1))


def test_a_table_reads_back_and_what_is_none_is_said_so(tmp_path: Path) -> None:
    table = CostTable(source="a test", capability="AVX2", threads=2, coefficients={"fft/forward/half": (0.1, 2.0)})
    path = tmp_path / "costs.json"
    path.write_text(table.as_json())
    assert read_costs(path) == table
    path.write_text(json.dumps({"coefficients": 3}))
    with pytest.raises(ValueError, match="not a table of costs"):
        read_costs(path)


def test_where_nothing_is_known_pytorch_comes_first() -> None:
    strange = Problem(
        batch=1, channels=2, height=9, width=9, kernel_size=(3, 3), stride=(3, 3), dilation=(2, 2), dtype=torch.float64
    )
    empty = CostTable(source="", capability="", threads=1, coefficients={})
    assert math.isinf(empty.predict("aten", "forward", strange, 1))
    assert order(strange, "forward", AVX2)[:2] in (("aten", "channels_last"), ("channels_last", "aten"))


def test_pytorch_keeps_what_is_nearly_equal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def ordered(fft_ms: float) -> tuple[str, ...]:
        coefficients = {
            regime(name, "forward", problem(4, 8, 28, 13)): (ms,) + (0.0,) * 7
            for name, ms in (("aten", 1.0), ("channels_last", 2.0), ("fft", fft_ms))
        }
        table = CostTable(source="", capability="AVX2", threads=2, coefficients=coefficients)
        monkeypatch.setattr("widefield.ops.depthwise_conv.order.costs", lambda capability: table)
        return order(problem(4, 8, 28, 13), "forward", AVX2)

    assert ordered(1.01 / HANDICAPS["fft"])[0] == "aten"
    assert ordered(0.99 / HANDICAPS["fft"])[0] == "fft"


def test_this_machines_own_table_is_used_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    capability = torch.backends.cpu.get_cpu_capability()
    assert tuning.costs(capability) == shipped_costs(capability)
    coefficients = {
        regime(name, pass_, problem(4, 8, 28, 31)): (0.1 if name == "channels_last" else 9.0,) + (0.0,) * 7
        for name in CPU_BACKENDS
        for pass_ in PASSES
    }
    path = tuning.keep(CostTable(source="", capability=capability, threads=1, coefficients=coefficients))
    assert path.is_relative_to(tmp_path / "widefield")
    assert explain(4, 8, 28, 28, 31).chosen("grad_weight") == "channels_last"
    path.write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert tuning.costs(capability) == shipped_costs(capability)
    assert "cannot be read" in caplog.text


def test_features_count_only_taps_that_meet_a_pixel() -> None:
    inside = features("aten", problem(1, 8, 5, 5))
    # 3 + 4 + 5 + 4 + 3 pairs on each axis.
    assert inside[3] == pytest.approx(8 * 19 * 19 / 1e6)
    assert machine().threads == torch.get_num_threads()
