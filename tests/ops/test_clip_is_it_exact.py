from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from widefield import explain
from widefield.ops import depthwise_conv2d
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.problem import Problem

SIZES = st.integers(1, 9)
KERNELS = st.sampled_from((1, 2, 3, 5, 8, 13, 21))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.tuples(SIZES, SIZES), st.tuples(KERNELS, KERNELS), st.integers(1, 3), st.integers(1, 2), st.integers(0, 12))
def test_cutting_dead_taps_changes_nothing(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, dilation: int, padding: int
) -> None:
    if any(n + 2 * padding < dilation * (k - 1) + 1 for n, k in zip(size, kernel, strict=True)):
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(3, 1, *kernel, dtype=torch.float64, generator=generator).requires_grad_()
    expected = F.conv2d(x, weight, None, stride, padding, dilation, 3)
    actual = depthwise_conv2d(x, weight, stride=stride, padding=padding, dilation=dilation)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight), grad) for y in (actual, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "kernel", "cut"), [(4, 13, 7), (7, 13, 13), (14, 27, 27), (1, 31, 1), (14, 67, 27), (56, 51, 51)]
)
def test_a_same_kernel_is_cut_to_twice_the_map_less_one(size: int, kernel: int, cut: int) -> None:
    half = kernel // 2
    problem = Problem(
        batch=1, channels=1, height=size, width=56, kernel_size=(kernel, 3), padding=(half, 1), dtype=torch.float32
    )
    clipped, margins = clip(problem)
    assert clipped.kernel_size == (cut, 3)
    assert clipped.output_size == problem.output_size
    assert margins == ((kernel - cut) // 2, 0)


def test_explain_says_as_what_a_clipped_kernel_runs() -> None:
    explanation = explain(2, 8, 4, 5, 13)
    assert explanation.problem.kernel_size == (13, 13)
    assert explanation.runs_as.kernel_size == (7, 9)
    assert "run as 7x9: the other taps meet no pixel" in str(explanation)
    assert explanation.chosen("forward") in ("aten", "channels_last")
    whole = explain(2, 8, 56, 56, 13)
    assert whole.runs_as == whole.problem
    assert "run as" not in str(whole)
