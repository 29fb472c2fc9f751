"""PyTorch's convolution behind a change of memory format, where its kernels do not fall off a cliff for wide rows."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.aten import AtenBackend
from widefield.ops.depthwise_conv.problem import Problem

_HALF = (torch.bfloat16, torch.float16)


class ChannelsLastBackend:
    """`AtenBackend` on channels_last copies; on a CPU half precision is computed in float32."""

    name = "channels_last"
    summary = "the same on channels_last copies (float32 inside for half precision on a CPU)"

    def __init__(self) -> None:
        self._aten = AtenBackend()

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        """It runs every problem."""
        return []

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """Convolve a channels_last copy."""
        wide = None if bias is None else _widened(bias, problem)
        return self._aten.forward(_copy(x, problem), _widened(weight, problem), wide, problem)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        """Convolve a channels_last copy of the gradient with the transposed operator."""
        return self._aten.grad_input(_copy(grad, problem), _widened(weight, problem), _as_channels_last(problem))

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        """Take the weight's gradient from channels_last copies."""
        return self._aten.grad_weight(_copy(grad, problem), _copy(x, problem), problem)


def _widened(x: Tensor, problem: Problem) -> Tensor:
    return x.float() if problem.device_type == "cpu" and x.dtype in _HALF else x


def _copy(x: Tensor, problem: Problem) -> Tensor:
    return _widened(x, problem).contiguous(memory_format=torch.channels_last)


def _as_channels_last(problem: Problem) -> Problem:
    return replace(problem, layout="channels_last")
