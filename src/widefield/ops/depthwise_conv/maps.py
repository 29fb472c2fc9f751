"""The three maps on real tensors: clip the kernel, choose a backend, run it, return the promised layout and type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.backends import Backend, Pass
from widefield.ops.depthwise_conv.clip import Margins, clip
from widefield.ops.depthwise_conv.order import BACKENDS, Machine, machine, order
from widefield.ops.depthwise_conv.problem import Problem, layout_of, memory_format
from widefield.ops.dispatch import choose
from widefield.ops.precision import as_written

Ints = Sequence[int]


@lru_cache(maxsize=4096)
def chosen(problem: Problem, pass_: Pass, forced: str, here: Machine) -> tuple[Problem, Margins, Backend]:
    """Return the clipped problem, the margins cut, and the backend that runs the map on the machine as it is set."""
    clipped, margins = clip(problem)
    return clipped, margins, choose(BACKENDS, order(clipped, pass_, here), clipped, pass_, forced)


def problem_of(image: Tensor, size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Problem:
    """Return the problem of a map that reads `image`; `size` is that of x, (N, C, H, W)."""
    return Problem(
        batch=int(size[0]),
        channels=int(size[1]),
        height=int(size[2]),
        width=int(size[3]),
        kernel_size=_pair(kernel),
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        dtype=image.dtype,
        device_type=image.device.type,
        layout=layout_of(image),
    )


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Tensor:
    """``F(x, w) + b``: (N, C, H, W), (C, 1, K_h, K_w), (C,) -> (N, C, P, Q) in the memory format of x."""
    problem = problem_of(x, x.shape, weight.shape[2:], stride, padding, dilation)
    problem, margins, runner = chosen(problem, "forward", backend, machine())
    if x.numel() == 0:
        y = torch.zeros((*x.shape[:2], *problem.output_size), dtype=x.dtype, device=x.device)
        return y if bias is None else y + bias[:, None, None]
    with as_written(x.device.type):
        return _finished(runner.forward(x, cut(weight, margins), bias, problem), x)


def grad_input(
    grad: Tensor, weight: Tensor, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Tensor:
    """``G_x(g, w)``: (N, C, P, Q), (C, 1, K_h, K_w) -> (N, C, H, W) in the memory format of g.

    Of `input_size` only H and W are read: where images are spread over processes, g tells how many are here.
    """
    input_size = (*grad.shape[:2], *input_size[2:])
    problem = problem_of(grad, input_size, weight.shape[2:], stride, padding, dilation)
    problem, margins, runner = chosen(problem, "grad_input", backend, machine())
    if grad.numel() == 0 or 0 in input_size:
        return torch.zeros(list(input_size), dtype=grad.dtype, device=grad.device)
    with as_written(grad.device.type):
        return _finished(runner.grad_input(grad, cut(weight, margins), problem), grad)


def grad_weight(
    grad: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Tensor:
    """``G_w(g, x)``: (N, C, P, Q), (N, C, H, W) -> (C, 1, K_h, K_w), contiguous."""
    problem = problem_of(x, x.shape, kernel_size, stride, padding, dilation)
    problem, (rows, columns), runner = chosen(problem, "grad_weight", backend, machine())
    if grad.numel() == 0 or x.numel() == 0:
        return x.new_zeros((x.shape[1], 1, *kernel_size))
    with as_written(x.device.type):
        taps = runner.grad_weight(grad, x, problem).to(x.dtype)
    return F.pad(taps, (columns, columns, rows, rows)).contiguous() if rows or columns else taps.contiguous()


def _pair(values: Ints) -> tuple[int, int]:
    return int(values[0]), int(values[1])


def cut(weight: Tensor, margins: Margins) -> Tensor:
    """Return the taps within the margins: a view, or the kernel itself."""
    rows, columns = margins
    if not rows and not columns:
        return weight
    return weight[..., rows : weight.shape[-2] - rows, columns : weight.shape[-1] - columns]


def _finished(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like.dtype).contiguous(memory_format=memory_format(layout_of(like)))
