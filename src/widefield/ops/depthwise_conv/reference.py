"""The definition of the three maps, tap by tap in float64: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem


class ReferenceBackend:
    """y[n, c, p, q] = b[c] + sum over (i, j) of w[c, 0, i, j] x[n, c, p s_h + i d_h - p_h, q s_w + j d_w - p_w]."""

    name = "reference"
    summary = "the definition, tap by tap in float64; for comparison only, never chosen"

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        """It runs everywhere, slowly."""
        return []

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """Add up the shifted images, each times its tap."""
        padded = F.pad(x.double(), _pads(problem))
        taps = weight.double()
        out = x.new_zeros((problem.batch, problem.channels, *problem.output_size), dtype=torch.float64)
        for i, j in _offsets(problem):
            out += padded[_window(problem, i, j)] * taps[:, 0, i, j, None, None]
        if bias is not None:
            out += bias.double()[:, None, None]
        return out.to(x.dtype)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        """Add the gradient, times each tap, back to where that tap read."""
        (left, right, top, bottom), taps = _pads(problem), weight.double()
        size = (problem.batch, problem.channels, problem.height + top + bottom, problem.width + left + right)
        padded = grad.new_zeros(size, dtype=torch.float64)
        for i, j in _offsets(problem):
            padded[_window(problem, i, j)] += grad.double() * taps[:, 0, i, j, None, None]
        return padded[..., top : top + problem.height, left : left + problem.width].to(grad.dtype)

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        """Correlate the gradient with the image that each tap read."""
        padded = F.pad(x.double(), _pads(problem))
        out = x.new_zeros((problem.channels, 1, *problem.kernel_size), dtype=torch.float64)
        for i, j in _offsets(problem):
            out[:, 0, i, j] = (grad.double() * padded[_window(problem, i, j)]).sum((0, 2, 3))
        return out.to(x.dtype)


def _pads(problem: Problem) -> tuple[int, int, int, int]:
    top, left = problem.padding
    return left, left, top, top


def _offsets(problem: Problem) -> list[tuple[int, int]]:
    return [(i, j) for i in range(problem.kernel_size[0]) for j in range(problem.kernel_size[1])]


def _window(problem: Problem, i: int, j: int) -> tuple[slice, ...]:
    height, width = problem.output_size
    top, left = i * problem.dilation[0], j * problem.dilation[1]
    rows = slice(top, top + (height - 1) * problem.stride[0] + 1, problem.stride[0])
    columns = slice(left, left + (width - 1) * problem.stride[1] + 1, problem.stride[1])
    return slice(None), slice(None), rows, columns
