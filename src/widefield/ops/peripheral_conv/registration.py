"""The three maps as torch.library operators, closed under differentiation.

With ``F``, ``G_x`` and ``G_w`` the maps, every derivative is again one of them:
dF = (G_x(g, w), G_w(g, x)), dG_x = (F(v, w), G_w(g, v)), dG_w = (F(x, u), G_x(g, u)).
`differentiation` says so to autograd.
"""

# torch.library leaves the types of its decorators open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from widefield.ops.depthwise_conv.problem import layout_of, memory_format
from widefield.ops.functions import check_no_tangent
from widefield.ops.peripheral_conv.clip import clip
from widefield.ops.peripheral_conv.order import choose
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_kernel.grid import SharingGrid
from widefield.ops.precision import as_written

Ints = Sequence[int]


def _problem(image: Tensor, rows: Ints, columns: Ints) -> PeripheralProblem:
    batch, channels, height, width = (int(n) for n in image.shape)
    return PeripheralProblem(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        rows=SharingGrid(tuple(rows)),
        columns=SharingGrid(tuple(columns)),
        dtype=image.dtype,
        device_type=image.device.type,
        layout=layout_of(image),
    )


def _finished(y: Tensor, like: Tensor) -> Tensor:
    return y.to(like.dtype).contiguous(memory_format=memory_format(layout_of(like)))


@torch.library.custom_op("widefield::peripheral_conv_forward", mutates_args=())
def forward(
    x: Tensor, cells: Tensor, bias: Tensor | None, rows: Ints, columns: Ints, form: str, backend: str
) -> Tensor:
    """``F(x, w) + b``: (N, C, H, W), (C, 1, P_h, P_w), (C,) -> (N, C, H, W) in the memory format of x."""
    check_no_tangent(x, cells, bias)
    problem, kept = clip(_problem(x, rows, columns))
    chosen = choose(problem, "forward", form, backend)
    if x.numel() == 0:
        return _empty(x)
    with as_written(x.device.type):
        return _finished(chosen.forward(x, kept.select(cells), bias, problem), x)


@torch.library.custom_op("widefield::peripheral_conv_grad_input", mutates_args=())
def grad_input(grad: Tensor, cells: Tensor, rows: Ints, columns: Ints, form: str, backend: str) -> Tensor:
    """``G_x(g, w)``: (N, C, H, W), (C, 1, P_h, P_w) -> (N, C, H, W) in the memory format of g."""
    check_no_tangent(grad, cells)
    problem, kept = clip(_problem(grad, rows, columns))
    chosen = choose(problem, "grad_input", form, backend)
    if grad.numel() == 0:
        return _empty(grad)
    with as_written(grad.device.type):
        return _finished(chosen.grad_input(grad, kept.select(cells), problem), grad)


@torch.library.custom_op("widefield::peripheral_conv_grad_cells", mutates_args=())
def grad_cells(grad: Tensor, x: Tensor, rows: Ints, columns: Ints, form: str, backend: str) -> Tensor:
    """``G_w(g, x)``: (N, C, H, W), (N, C, H, W) -> (C, 1, P_h, P_w), contiguous."""
    check_no_tangent(grad, x)
    problem, kept = clip(_problem(x, rows, columns))
    chosen = choose(problem, "grad_cells", form, backend)
    if x.numel() == 0:
        return x.new_zeros((x.shape[1], 1, len(rows), len(columns)))
    with as_written(x.device.type):
        return kept.embed(chosen.grad_cells(grad, x, problem).to(x.dtype)).contiguous()


@forward.register_fake
def _(x: Tensor, cells: Tensor, bias: Tensor | None, rows: Ints, columns: Ints, form: str, backend: str) -> Tensor:
    return _empty(x)


@grad_input.register_fake
def _(grad: Tensor, cells: Tensor, rows: Ints, columns: Ints, form: str, backend: str) -> Tensor:
    return _empty(grad)


@grad_cells.register_fake
def _(grad: Tensor, x: Tensor, rows: Ints, columns: Ints, form: str, backend: str) -> Tensor:
    return x.new_empty([x.shape[1], 1, len(rows), len(columns)])


def _empty(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=memory_format(layout_of(like)))
