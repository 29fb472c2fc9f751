"""PyTorch's own convolution on the input as it lies: the baseline of every benchmark, and always a candidate.

Only where PyTorch's kernel is known to go wrong (`defects`) is it given something else.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv import defects
from widefield.ops.depthwise_conv.problem import Problem, memory_format


class AtenBackend:
    """`torch.nn.functional.conv2d` with ``groups=C`` and its backward, exactly as PyTorch runs them."""

    name = "aten"
    summary = "F.conv2d and its backward on the input as it lies"

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        """PyTorch runs every problem."""
        return []

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """Call `torch.nn.functional.conv2d`."""
        if defects.may_not_end(problem) and x.dtype in defects.HALF and not defects.is_plain_nchw(x, weight):
            x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
        return F.conv2d(x, weight, bias, problem.stride, problem.padding, problem.dilation, problem.channels)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        """Call ``aten::convolution_backward`` for the input alone."""
        size = (problem.batch, problem.channels, problem.height, problem.width)
        # The kernel reads shape and format of the input, never its values.
        like = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(problem.layout))
        return _backward(grad, like, weight, problem, [True, False, False])[0]

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        """Call ``aten::convolution_backward`` for the weight alone."""
        if defects.is_rounded_wrongly(problem):
            grad, x = grad.float(), x.float()
        if defects.is_out_of_bounds(problem):
            grad, x, problem = _doubled(grad), _doubled(x), replace(problem, channels=2)
            return self.grad_weight(grad, x, problem)[:1]
        like = x.new_empty((problem.channels, 1, *problem.kernel_size))
        return _backward(grad, x, like, problem, [False, True, False])[1]


def _doubled(x: Tensor) -> Tensor:
    """(N, 1, H, W) -> (N, 2, H, W), the same twice."""
    return torch.cat([x, x], 1)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, problem: Problem, mask: list[bool]) -> tuple[Tensor, ...]:
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, problem.stride, problem.padding, problem.dilation, False, [0, 0], problem.channels, mask
    )
