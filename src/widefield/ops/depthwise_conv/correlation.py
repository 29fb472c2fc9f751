"""The weight's gradient as a forward convolution: each plane of the input correlated with its plane of the gradient.

``G_w(g, x)[c, i, j] = sum over n, p, q of g[n, c, p, q] x[n, c, p + i - p_h, q + j - p_w]`` is, for every image n, a
depthwise convolution of x[n] whose kernel is g[n] and whose output is only K_h x K_w. So the fast forward kernels serve
for the one map that PyTorch computes slowly in every layout on a CPU; the batch is summed afterwards.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem

MOST_UNROLLED = 1 << 18
"""Products of one plane, taps times pixels of the gradient, up to which a kernel with wide rows is taken.

oneDNN writes out the code for all of them, some 250 bytes each: 0.6 GB for K = 31 on 56 x 56, and 17 GB for K = 101.
"""


class CorrelationBackend:
    """``grad_weight`` only, on a CPU, stride 1 and dilation 1."""

    name = "correlation"
    summary = "grad_weight as a forward convolution of N C planes (CPU)"

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        """It has one map, and knows where it was measured."""
        rules = (
            (pass_ == "grad_weight", "it computes grad_weight alone"),
            (problem.device_type == "cpu", f"it is for CPU tensors, not {problem.device_type}"),
            (problem.stride == (1, 1), "it needs stride 1"),
            (problem.dilation == (1, 1), "it needs dilation 1"),
            (
                problem.kernel_size[1] <= nchw_kernel_width_limit() or _products(problem) <= MOST_UNROLLED,
                f"its code for {_products(problem):,} products of a plane would fill the memory",
            ),
        )
        return [reason for holds, reason in rules if not holds]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """Never called: `refusals` names the reason."""
        raise AssertionError("correlation has no forward")

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        """Never called: `refusals` names the reason."""
        raise AssertionError("correlation has no grad_input")

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        """Convolve the (1, N C, H, W) planes of x with those of the gradient, then sum over the batch."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        planes = problem.batch * problem.channels
        image = x.to(dtype).reshape(1, planes, problem.height, problem.width)
        kernel = grad.to(dtype).reshape(planes, 1, *problem.output_size)
        # Here the output is as wide as the kernel was: the width limit of oneDNN's NCHW kernels applies to that.
        if problem.kernel_size[1] > nchw_kernel_width_limit():
            image = image.contiguous(memory_format=torch.channels_last)
        taps = F.conv2d(image, kernel, padding=problem.padding, groups=planes)
        return taps.reshape(problem.batch, problem.channels, 1, *problem.kernel_size).sum(0)


def _products(problem: Problem) -> int:
    return math.prod(problem.kernel_size) * math.prod(problem.output_size)


def nchw_kernel_width_limit() -> int:
    """Widest kernel row for which oneDNN's NCHW depthwise kernels stay fast.

    Measured: with AVX2, 9 is fast and 10 is 18 times slower; with AVX-512, 15 was the last fast one.
    """
    return 15 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 9
