"""The three maps as torch.library operators, closed under differentiation.

With ``F``, ``G_x`` and ``G_w`` the maps, every derivative is again one of them:
dF = (G_x(g, w), G_w(g, x)), dG_x = (F(v, w), G_w(g, v)), dG_w = (F(x, u), G_x(g, u)).
"""

# torch.library leaves the types of its decorators open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from widefield.ops.depthwise_conv import maps
from widefield.ops.depthwise_conv.problem import layout_of, memory_format
from widefield.ops.functions import check_no_tangent

Ints = Sequence[int]


@torch.library.custom_op("widefield::depthwise_conv_forward", mutates_args=())
def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Tensor:
    """As `maps.forward`."""
    check_no_tangent(x, weight, bias)
    return maps.forward(x, weight, bias, stride, padding, dilation, backend)


@torch.library.custom_op("widefield::depthwise_conv_grad_input", mutates_args=())
def grad_input(
    grad: Tensor, weight: Tensor, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Tensor:
    """As `maps.grad_input`."""
    check_no_tangent(grad, weight)
    return maps.grad_input(grad, weight, input_size, stride, padding, dilation, backend)


@torch.library.custom_op("widefield::depthwise_conv_grad_weight", mutates_args=())
def grad_weight(
    grad: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Tensor:
    """As `maps.grad_weight`."""
    check_no_tangent(grad, x)
    return maps.grad_weight(grad, x, kernel_size, stride, padding, dilation, backend)


@forward.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Tensor:
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    spatial = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    return _empty([x.shape[0], x.shape[1], *spatial], x)


@grad_input.register_fake
def _(
    grad: Tensor, weight: Tensor, input_size: Ints, stride: Ints, padding: Ints, dilation: Ints, backend: str
) -> Tensor:
    return _empty([grad.shape[0], grad.shape[1], *input_size[2:]], grad)


@grad_weight.register_fake
def _(grad: Tensor, x: Tensor, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints, backend: str) -> Tensor:
    return x.new_empty([x.shape[1], 1, *kernel_size])


def _empty(shape: list[int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(layout_of(like)))


def _setup_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, *ctx.geometry = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward_forward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    dx = grad_input(grad, weight, x.shape, *ctx.geometry) if needs_x else None
    dw = grad_weight(grad, x, weight.shape[2:], *ctx.geometry) if needs_weight else None
    db = grad.sum((0, 2, 3)) if ctx.has_bias and needs_bias else None
    return dx, dw, db, None, None, None, None


def _setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, _, *ctx.geometry = inputs
    ctx.save_for_backward(first, second)


def _backward_grad_input(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    grad, weight = ctx.saved_tensors
    dg = forward(v, weight, None, *ctx.geometry) if ctx.needs_input_grad[0] else None
    dw = grad_weight(grad, v, weight.shape[2:], *ctx.geometry) if ctx.needs_input_grad[1] else None
    return dg, dw, None, None, None, None, None


def _backward_grad_weight(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
    grad, x = ctx.saved_tensors
    dg = forward(x, u, None, *ctx.geometry) if ctx.needs_input_grad[0] else None
    dx = grad_input(grad, u, x.shape, *ctx.geometry) if ctx.needs_input_grad[1] else None
    return dg, dx, None, None, None, None, None


forward.register_autograd(_backward_forward, setup_context=_setup_forward)
grad_input.register_autograd(_backward_grad_input, setup_context=_setup_gradient)
grad_weight.register_autograd(_backward_grad_weight, setup_context=_setup_gradient)
