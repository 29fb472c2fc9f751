from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from support.problems import MAPS, Case, cases, make_case

from widefield.ops.backends import Pass, find
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.order import BACKENDS
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.dispatch import BACKEND_NAMES

SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}


@pytest.fixture
def poisoned() -> Generator[None]:
    """Let torch fill what it allocates with NaN, so that a value that is read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def compare(case: Case, map_: Pass, backend: str) -> None:
    """In float64 to rounding; else to twice the error of PyTorch's own convolution and the rounding of one term.

    A Fourier transform spreads rounding over the plane, so its scale is the norms of the planes.
    """
    actual, expected = case.run(map_, backend), case.oracle(map_)
    assert actual.dtype == case.problem.dtype
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return
    error = (actual.double() - expected).abs().max().item()
    eps, magnitude = torch.finfo(case.problem.dtype).eps, case.magnitude(map_)
    if backend in ("fft", "dft", ""):
        magnitude = max(magnitude, case.energy(map_))
    if case.problem.dtype == torch.float64:
        assert error <= 50 * eps * magnitude
    else:
        baseline = (case.run(map_, "aten").double() - expected).abs().max().item()
        assert baseline <= 20 * eps * magnitude
        # PyTorch sums the input's gradient, which `transposed` is, in an order that loses twice as much; a Fourier
        # backend rounds twice, on the way to the spectrum and on the way back.
        terms = 2 if backend in ("transposed", "fft", "dft", "") else 1
        assert error <= 2 * baseline + terms * eps * magnitude


RUNS = [
    *((backend, map_) for backend in ("", "aten", "channels_last", "fft", "dft") for map_ in MAPS),
    ("transposed", "forward"),
    ("correlation", "grad_weight"),
]
"""Backends that a CPU may run, or the chosen one, and their maps."""

PLAIN = ("correlation",)
"""Backends that know stride 1 and dilation 1 alone."""


def check_drawn(data: st.DataObject, backend: str, map_: Pass, most_macs: int) -> None:
    case = data.draw(cases(plain=backend in PLAIN, most_macs=most_macs))
    runs_as, _ = clip(case.problem)
    assume(not backend or not find(BACKENDS, backend).refusals(runs_as, map_))
    compare(case, map_, backend)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("backend", "map_"), RUNS)
@settings(max_examples=60, **SETTINGS)
@given(data=st.data())
def test_every_map_of_every_backend_equals_the_definition(data: st.DataObject, backend: str, map_: Pass) -> None:
    check_drawn(data, backend, map_, 300_000)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("backend", "map_"), RUNS)
@settings(max_examples=500, **SETTINGS)
@given(data=st.data())
def test_every_map_of_every_backend_equals_the_definition_on_many_larger_problems(
    data: st.DataObject, backend: str, map_: Pass
) -> None:
    check_drawn(data, backend, map_, 4_000_000)


@pytest.mark.parametrize("width", [9, 11, 15, 17, 31])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_choice_on_either_side_of_the_width_limits_computes_the_same(
    width: int, dtype: torch.dtype, layout: str
) -> None:
    problem = Problem(
        batch=2,
        channels=8,
        height=20,
        width=24,
        kernel_size=(width, width),
        padding=(width // 2, width // 2),
        dtype=dtype,
        layout="channels_last" if layout == "channels_last" else "contiguous",
    )
    for map_ in MAPS:
        compare(make_case(problem), map_, "")  # type: ignore[arg-type]


@settings(max_examples=25, **SETTINGS)
@given(case=cases((torch.float64,)))
def test_the_definition_equals_pytorch_which_shares_no_code_with_it(case: Case) -> None:
    problem = case.problem
    layer = torch.nn.functional.conv2d
    x, weight = case.x.clone().requires_grad_(), case.weight.clone().requires_grad_()
    y = layer(x, weight, case.bias, problem.stride, problem.padding, problem.dilation, problem.channels)
    dx, dw = torch.autograd.grad(y, (x, weight), case.grad)
    for map_, expected in zip(MAPS, (y, dx, dw), strict=True):
        torch.testing.assert_close(case.run(map_, "reference"), expected, rtol=1e-12, atol=1e-12)


def test_the_names_to_choose_from_are_the_backends_there_are() -> None:
    assert sorted(BACKEND_NAMES) == sorted(backend.name for backend in BACKENDS)
    assert all(find(BACKENDS, name).summary for name in BACKEND_NAMES)


@pytest.mark.parametrize("map_", ["forward", "grad_input"])
def test_a_map_that_the_correlation_lacks_is_refused_before_it_is_called(map_: Pass) -> None:
    problem = Problem(batch=1, channels=1, height=3, width=3, kernel_size=(3, 3), padding=(1, 1))
    case, backend = make_case(problem), find(BACKENDS, "correlation")
    assert backend.refusals(problem, map_) == ["it computes grad_weight alone"]
    with pytest.raises(AssertionError, match="correlation has no forward"):
        backend.forward(case.x, case.weight, None, problem)
    with pytest.raises(AssertionError, match="correlation has no grad_input"):
        backend.grad_input(case.grad, case.weight, problem)
