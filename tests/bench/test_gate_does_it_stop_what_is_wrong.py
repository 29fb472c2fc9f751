from __future__ import annotations

import pytest
import torch
from bench.bench_support import Clock, Wrong, problem

from widefield.bench import gate
from widefield.bench.gate import limit, oracle
from widefield.bench.operands import make_operands
from widefield.bench.operator import Candidate, bench_map, bench_operator
from widefield.bench.timers import CpuTimer
from widefield.ops.backends import PASSES
from widefield.ops.depthwise_conv.order import BACKENDS
from widefield.ops.depthwise_conv.reference import ReferenceBackend

WORDS = {
    "forward": "2 of 3 channels of the last image",
    "grad_input": "2 of 3 channels of the last image",
    "grad_weight": "1 of 3 channels",
}


@pytest.mark.parametrize("pass_", PASSES)
def test_a_part_of_the_right_result_is_right_and_of_a_wrong_one_wrong(pass_: str, monkeypatch) -> None:
    at = problem(batch=2, channels=3, size=8, kernel_size=5)
    # Room for two channels of one image, which for a weight gradient is one channel of both.
    monkeypatch.setattr(gate, "MOST_MACS", 2 * 8 * 8 * 25)
    operands = make_operands(at)
    found = oracle(at, pass_, operands)
    assert found.how == WORDS[pass_]
    right = operands.run(ReferenceBackend(), pass_, at)
    assert found.error(right) < 1e-6
    assert found.error(right * 1.5) == pytest.approx(0.5, abs=1e-5)


def test_a_large_weight_gradient_is_judged_by_some_taps(monkeypatch) -> None:
    at = problem(batch=2, channels=3, size=12, kernel_size=9, stride=(2, 2))
    monkeypatch.setattr(gate, "MOST_MACS", 100)
    operands = make_operands(at)
    found = oracle(at, "grad_weight", operands)
    assert found.how == "64 of 81 taps of 1 of 3 channels"
    assert found.error(operands.run(ReferenceBackend(), "grad_weight", at)) < 1e-6


def test_what_is_not_finite_or_misshapen_is_infinitely_wrong() -> None:
    at = problem()
    operands = make_operands(at)
    found = oracle(at, "forward", operands)
    right = operands.run(ReferenceBackend(), "forward", at)
    spoiled = right.clone()
    spoiled[-1, -1, -1, -1] = float("nan")
    assert found.error(spoiled) == float("inf")
    assert found.error(right[..., :-1]) == float("inf")


def test_the_limit_follows_the_type_and_pytorch_but_only_so_far() -> None:
    assert limit(torch.float32, None) == 1e-5
    assert limit(torch.float32, 1e-4) == pytest.approx(4e-4)
    assert limit(torch.bfloat16, 1.0) == gate.WORST_LIMIT


@pytest.mark.parametrize(("factor", "words"), [(2.0, ""), (float("nan"), "not finite")])
def test_a_wrong_backend_is_recorded_and_never_timed(factor: float, words: str) -> None:
    record = bench_operator(problem(), backends=(*BACKENDS[:1], Wrong("broken", factor)), budget_s=0.01)
    for entry in record.maps:
        assert entry.wrong == ("broken",)
        broken, aten = entry.result("broken"), entry.result("aten")
        assert broken is not None
        assert broken.median_ms is None
        assert broken.at_least_ms is None
        assert words in broken.failure
        # On a busy machine even one run may be long enough to rule it out.
        assert aten is not None
        assert aten.least_ms < float("inf")


def test_a_backend_that_raises_is_recorded_with_its_words() -> None:
    def fail(operands: object, at: object) -> torch.Tensor:
        raise RuntimeError("no such kernel")

    entry = bench_map(problem(), "forward", [Candidate(name="raises", compute=fail)], budget_s=0.01)
    assert entry.results[0].failure == "RuntimeError: no such kernel"


@pytest.mark.parametrize("kernel_size", [5, 31])
def test_every_backend_and_the_dispatched_operator_are_measured(kernel_size: int) -> None:
    record = bench_operator(problem(kernel_size=kernel_size), budget_s=0.03, timer=CpuTimer())
    assert [entry.pass_ for entry in record.maps] == list(PASSES)
    assert record.is_complete
    for entry in record.maps:
        assert {r.name for r in entry.results} == {b.name for b in BACKENDS if b.name != "reference"} | {"auto"}
        assert entry.wrong == ()
        assert entry.runs_as == (min(kernel_size, 15),) * 2
        for result in entry.results:
            assert bool(result.refusals) != (result.least_ms < float("inf")), result
        assert entry.result(entry.chosen) is not None


@pytest.mark.parametrize(("dtype", "layout"), [(torch.bfloat16, "contiguous"), (torch.float16, "channels_last")])
def test_half_precision_and_both_layouts_pass_the_gate(dtype: torch.dtype, layout: str) -> None:
    record = bench_operator(problem(kernel_size=13, dtype=dtype, layout=layout), budget_s=0.01)
    assert all(entry.wrong == () for entry in record.maps)
    assert all(r.relative_error is not None for e in record.maps for r in e.results if not r.refusals and not r.failure)


def test_the_clock_decides_nothing_about_right_and_wrong() -> None:
    entry = bench_map(
        problem(), "forward", [Candidate(name="x", compute=lambda o, p: o.x)], budget_s=1.0, timer=Clock().timer()
    )
    assert entry.results[0].is_wrong
