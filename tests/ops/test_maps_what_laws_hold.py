from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.problems import Case, cases, make_case
from torch import Tensor

from widefield.ops import depthwise_conv2d, use_backend
from widefield.ops.depthwise_conv.problem import Problem

DOUBLE = (torch.float64,)
SETTINGS: Any = {
    "deadline": None,
    "derandomize": True,
    "max_examples": 12,
    "suppress_health_check": [HealthCheck.too_slow],
}
BACKENDS = pytest.mark.parametrize("backend", ["reference", "aten", "channels_last", "fft", "dft"])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def conv(case: Case, x: Tensor, weight: Tensor, backend: str) -> Tensor:
    problem = case.problem
    with use_backend(backend):
        return depthwise_conv2d(x, weight, stride=problem.stride, padding=problem.padding, dilation=problem.dilation)


@BACKENDS
@settings(**SETTINGS)
@given(case=cases(DOUBLE), factor=st.floats(-3, 3))
def test_the_convolution_is_linear_in_image_and_in_kernel(case: Case, factor: float, backend: str) -> None:
    x, weight = case.x, case.weight
    other_x, other_weight = x.flip(-1) + 1, weight.flip(-2) - 1
    y = conv(case, x, weight, backend)
    close(conv(case, x + factor * other_x, weight, backend), y + factor * conv(case, other_x, weight, backend))
    close(conv(case, x, weight + factor * other_weight, backend), y + factor * conv(case, x, other_weight, backend))


@BACKENDS
@settings(**SETTINGS)
@given(case=cases(DOUBLE))
def test_the_three_maps_are_adjoint(case: Case, backend: str) -> None:
    case = make_case(case.problem, with_bias=False)
    of_output = (case.run("forward", backend) * case.grad).sum()
    close((case.run("grad_input", backend) * case.x).sum(), of_output)
    close((case.run("grad_weight", backend) * case.weight).sum(), of_output)


def test_the_correlation_is_adjoint_to_the_forward_map() -> None:
    problem = Problem(batch=2, channels=3, height=9, width=7, kernel_size=(5, 11), padding=(2, 5), dtype=torch.float64)
    case = make_case(problem, with_bias=False)
    of_output = (case.run("forward", "aten") * case.grad).sum()
    close((case.run("grad_weight", "correlation") * case.weight).sum(), of_output)


@BACKENDS
@settings(**SETTINGS)
@given(case=cases(DOUBLE, plain=True))
def test_a_delta_kernel_changes_nothing(case: Case, backend: str) -> None:
    delta = torch.zeros_like(case.weight)
    delta[:, :, delta.shape[2] // 2, delta.shape[3] // 2] = 1
    close(conv(case, case.x, delta, backend), case.x)


@BACKENDS
@settings(**SETTINGS)
@given(case=cases(DOUBLE, plain=True), shift=st.integers(1, 3))
def test_a_shifted_image_gives_a_shifted_output_away_from_the_border(case: Case, shift: int, backend: str) -> None:
    room = [k // 2 + shift for k in case.problem.kernel_size]
    x = F.pad(case.x, (room[1], room[1], room[0], room[0]))
    plain = conv(case, x, case.weight, backend)
    shifted = conv(case, x.roll((shift, shift), (2, 3)), case.weight, backend)
    inner = (slice(None), slice(None), slice(shift, -shift), slice(shift, -shift))
    close(shifted[inner], plain.roll((shift, shift), (2, 3))[inner])


@BACKENDS
@settings(**SETTINGS)
@given(case=cases(DOUBLE, plain=True))
def test_dilation_is_a_kernel_with_zeros_between_its_taps(case: Case, backend: str) -> None:
    weight = case.weight
    size = [2 * k - 1 for k in weight.shape[2:]]
    spread = weight.new_zeros(*weight.shape[:2], *size)
    spread[:, :, ::2, ::2] = weight
    with use_backend(backend):
        close(depthwise_conv2d(case.x, weight, dilation=2), depthwise_conv2d(case.x, spread))


@BACKENDS
@settings(**SETTINGS)
@given(case=cases(DOUBLE, plain=True), margin=st.integers(1, 4))
def test_a_kernel_embedded_in_zeros_is_the_same_kernel(case: Case, margin: int, backend: str) -> None:
    with use_backend(backend):
        expected = depthwise_conv2d(case.x, case.weight, case.bias)
        close(depthwise_conv2d(case.x, F.pad(case.weight, [margin] * 4), case.bias), expected)


@BACKENDS
@settings(**SETTINGS)
@given(case=cases(DOUBLE))
def test_a_stride_keeps_every_second_output_of_the_dense_convolution(case: Case, backend: str) -> None:
    problem = case.problem
    with use_backend(backend):
        dense = depthwise_conv2d(case.x, case.weight, padding=problem.padding, dilation=problem.dilation)
    close(conv(case, case.x, case.weight, backend), dense[:, :, :: problem.stride[0], :: problem.stride[1]])
