from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from widefield._core.errors import InputError
from widefield.ops import depthwise_conv2d, explain, use_backend
from widefield.ops.backends import PASSES
from widefield.ops.depthwise_conv import correlation, shortcut
from widefield.ops.depthwise_conv.order import BACKENDS
from widefield.ops.depthwise_conv.problem import Layout, Problem
from widefield.ops.dispatch import BACKEND_NAMES, choose, explain_choice, forced_backend

Runs = list[tuple[str, str]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """What ran, as (map, backend), outermost first."""
    seen: Runs = []
    depth = 0
    # Where PyTorch's convolution is best for all maps it is called directly, past the backends.
    monkeypatch.setattr(shortcut, "_plans", {})
    monkeypatch.setattr(shortcut, "_is_direct", lambda *values: False)

    def spied(name: str, pass_: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            nonlocal depth
            if depth == 0:
                seen.append((pass_, name))
            depth += 1
            try:
                return original(*values)
            finally:
                depth -= 1

        return run

    for backend in BACKENDS:
        for pass_ in PASSES:
            monkeypatch.setattr(backend, pass_, spied(backend.name, pass_, getattr(backend, pass_)), raising=True)
    return seen


def test_the_backend_of_a_block_runs_its_backward_after_the_block(runs: Runs) -> None:
    x, weight = torch.randn(1, 2, 5, 5, requires_grad=True), torch.randn(2, 1, 3, 3, requires_grad=True)
    with use_backend("reference"):
        y = depthwise_conv2d(x, weight)
    y.sum().backward()
    assert sorted(runs) == [(pass_, "reference") for pass_ in PASSES]


def test_blocks_nest_and_end_with_an_exception_too() -> None:
    assert forced_backend() == ""
    with use_backend("aten"):
        with use_backend("reference"):
            assert forced_backend() == "reference"
        assert forced_backend() == "aten"
        with pytest.raises(ZeroDivisionError), use_backend("channels_last"):
            raise ZeroDivisionError
        assert forced_backend() == "aten"
    assert forced_backend() == ""


def test_an_unknown_backend_is_answered_with_the_nearest_name() -> None:
    text = "Expected the name of a backend, but got 'channels_first': did you mean 'channels_last'."
    with pytest.raises(InputError, match=re.escape(text)), use_backend("channels_first"):
        pass
    text = f"but got '??': use one of {', '.join(sorted(BACKEND_NAMES))}."
    with pytest.raises(InputError, match=re.escape(text)), use_backend("??"):
        pass


def test_a_forced_backend_that_cannot_run_says_every_reason_and_does_not_fall_back() -> None:
    text = (
        "Expected a problem whose forward the backend 'correlation' can run, but got depthwise 3x3 on N1 C2 5x5, "
        "stride 2x2, dilation 1x2, float32, contiguous, cpu (correlation: it computes grad_weight alone; "
        "correlation: it needs stride 1; correlation: it needs dilation 1): choose another backend or none."
    )
    with pytest.raises(InputError, match=re.escape(text)), use_backend("correlation"):
        depthwise_conv2d(torch.ones(1, 2, 5, 5), torch.ones(2, 1, 3, 3), stride=2, dilation=(1, 2))


def test_if_nothing_can_run_every_backend_says_why() -> None:
    problem = Problem(batch=1, channels=1, height=3, width=3, kernel_size=(3, 3), device_type="cuda", stride=(2, 2))
    text = (
        "Expected a problem whose grad_weight the backends 'correlation' can run, but got depthwise 3x3 on N1 C1 3x3, "
        "stride 2x2, float32, contiguous, cuda (correlation: it is for CPU tensors, not cuda; "
        "correlation: it needs stride 1): change the input."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        choose(BACKENDS, ("correlation",), problem, "grad_weight", "")
    nothing = explain_choice(BACKENDS, dict.fromkeys(PASSES, ("correlation",)), problem, problem, "")
    assert nothing.chosen("forward") == ""


@pytest.mark.parametrize("capability", ["AVX2", "AVX512_BF16"])
@pytest.mark.parametrize("kernel", [3, 9, 11, 17, (31, 5), (5, 31), (5, 61)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_explain_calls_chosen_is_what_runs(
    runs: Runs,
    kernel: int | tuple[int, int],
    dtype: torch.dtype,
    layout: Layout,
    capability: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert correlation.nchw_kernel_width_limit() == (15 if capability.startswith("AVX512") else 9)
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.ones(1, 2, 20, 24, dtype=dtype).contiguous(memory_format=form).requires_grad_()
    weight = torch.ones(2, 1, *size, dtype=dtype, requires_grad=True)
    y = depthwise_conv2d(x, weight)
    torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    explanation = explain(1, 2, 20, 24, kernel, dtype=dtype, layout=layout)
    assert sorted(runs) == [(pass_, explanation.chosen(pass_)) for pass_ in PASSES]
    assert not any(chosen == "reference" for _, chosen in runs)


@pytest.mark.parametrize(
    ("kernel_size", "size", "reasons"),
    [
        (31, 56, ["its code for 3,013,696 products of a plane would fill the memory"]),
        (13, 28, []),
        (7, 200, []),
    ],
)
def test_a_correlation_that_is_written_out_tap_by_tap_is_bounded(
    kernel_size: int, size: int, reasons: list[str]
) -> None:
    half = kernel_size // 2
    problem = Problem(
        batch=1, channels=8, height=size, width=size, kernel_size=(kernel_size,) * 2, padding=(half, half)
    )
    assert correlation.CorrelationBackend().refusals(problem, "grad_weight") == reasons


def test_explain_lists_every_backend_for_every_map_with_its_standing() -> None:
    explanation = explain(1, 8, 56, 56, 3, device="cuda")
    assert len(explanation.candidates) == len(PASSES) * len(BACKENDS)
    lines = str(explanation).splitlines()
    assert lines[0] == "depthwise 3x3 on N1 C8 56x56, float32, contiguous, cuda"
    assert lines[1].split() == ["forward", "aten", "chosen"]
    assert lines[2].split() == ["forward", "channels_last", "can", "run"]
    refused = [line for line in lines if "correlation" in line and "forward" in line]
    assert refused[0].endswith("cannot run (it computes grad_weight alone; it is for CPU tensors, not cuda)")
    assert [line.split()[1] for line in lines if line.endswith("on request only")] == ["reference"] * 3


def test_explain_gives_the_predicted_times_that_a_cpu_is_chosen_by() -> None:
    explanation = explain(4, 128, 56, 56, 31)
    times = {c.backend: c.predicted_ms for c in explanation.candidates if c.pass_ == "forward" and c.predicted_ms}
    assert set(times) == {"aten", "channels_last", "transposed", "fft", "dft"}
    assert explanation.chosen("forward") == min(times, key=lambda name: times[name])
    assert f"about {times['fft']:.3g} ms" in str(explanation)


def test_explain_within_a_block_tells_of_the_forced_backend() -> None:
    with use_backend("reference"):
        explanation = explain(1, 8, 5, 5, 3)
        assert [explanation.chosen(pass_) for pass_ in PASSES] == ["reference"] * 3
        standings = {c.backend: c.standing for c in explanation.candidates if c.pass_ == "forward"}
        assert standings["aten"] == "on request only"
    with use_backend("correlation"):
        assert [explain(1, 8, 5, 5, 3).chosen(pass_) for pass_ in PASSES] == ["", "", "correlation"]


def test_a_problem_counts_its_multiplications() -> None:
    problem = Problem(batch=2, channels=3, height=9, width=8, kernel_size=(3, 5), stride=(2, 1), padding=(1, 0))
    assert problem.output_size == (5, 4)
    assert problem.macs == 2 * 3 * 5 * 4 * 3 * 5
