"""The derivatives and the batching rules of the registered operators.

Each operator has an ordinary autograd function above it, so that `torch.func` differentiates and maps it, and the same
derivative below, so that exported graphs, which hold the operators alone, can still be trained.
"""

# torch.library and autograd functions leave the types of contexts and arguments open.
# pyright: reportUnknownMemberType=false, reportIncompatibleMethodOverride=false, reportPrivateUsage=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from widefield.ops.functions import apply, mapped, save_operands, sum_of
from widefield.ops.peripheral_conv import flops, registration
from widefield.ops.sharding import prepare

# The functions below name each setting: PyTorch's compiler before 2.15 counts the parameters of a `forward` to tell
# whether it takes a context, and takes `*settings` for one.
Sizes = tuple[int, ...]


def peripheral_forward(
    x: Tensor,
    cells: Tensor,
    bias: Tensor | None,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    form: str,
    backend: str,
) -> Tensor:
    """As `registration.forward`, with derivatives of any order and a batching rule."""
    return _forward(x, cells, bias, rows, columns, form, backend)


def _forward(x: Tensor, cells: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    return mapped(_Forward, registration.forward, x, cells, bias, *settings)


def _grad_input(grad: Tensor, cells: Tensor, *settings: Any) -> Tensor:
    return mapped(_GradInput, registration.grad_input, grad, cells, *settings)


def _grad_cells(grad: Tensor, x: Tensor, *settings: Any) -> Tensor:
    return mapped(_GradCells, registration.grad_cells, grad, x, *settings)


class _Forward(Function):
    """``F(x, w) + b``."""

    @staticmethod
    def forward(
        x: Tensor, cells: Tensor, bias: Tensor | None, rows: Sizes, columns: Sizes, form: str, backend: str
    ) -> Tensor:
        _prepare()
        return registration.forward(x, cells, bias, rows, columns, form, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, cells, bias, *ctx.settings = inputs
        ctx.has_bias, ctx.size = bias is not None, tuple(output.shape)
        save_operands(ctx, x, cells)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        x, cells = ctx.saved_tensors
        needs_x, needs_cells, needs_bias = ctx.needs_input_grad[:3]
        dx = _grad_input(grad, cells, *ctx.settings) if needs_x else None
        dw = _grad_cells(grad, x, *ctx.settings) if needs_cells else None
        db = grad.sum((0, 2, 3)) if ctx.has_bias and needs_bias else None
        return dx, dw, db, None, None, None, None

    @staticmethod
    def push(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, *rest: Any) -> Tensor | None:
        x, cells = ctx.saved_tensors
        by_x = None if dx is None else _forward(dx, cells, None, *ctx.settings)
        by_cells = None if dw is None else _forward(x, dw, None, *ctx.settings)
        return sum_of(by_x, by_cells, None if db is None else db[:, None, None].expand(ctx.size))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, cells: Tensor, bias: Tensor | None, *settings: Any
    ) -> tuple[Tensor, int]:
        count = info.batch_size
        if in_dims[1] is not None:
            wide, many = _into_channels(x, in_dims[0], count), _leading(cells, in_dims[1], count)
            biases = None if bias is None else _leading(bias, in_dims[2], count).flatten(0, 1)
            y = apply(_Forward, wide, many.flatten(0, 1), biases, *settings)
            return y.unflatten(1, many.shape[:2]), 1
        common = None if in_dims[2] is not None else bias
        if in_dims[0] is None:
            y = apply(_Forward, x, cells, common, *settings).unsqueeze(0)
        else:
            images = x.movedim(in_dims[0], 0)
            y = apply(_Forward, images.flatten(0, 1), cells, common, *settings).unflatten(0, images.shape[:2])
        if bias is not None and in_dims[2] is not None:
            y = y + bias.movedim(in_dims[2], 0)[:, None, :, None, None]
        return y, 0


class _GradInput(Function):
    """``G_x(g, w)``."""

    @staticmethod
    def forward(grad: Tensor, cells: Tensor, rows: Sizes, columns: Sizes, form: str, backend: str) -> Tensor:
        _prepare()
        return registration.grad_input(grad, cells, rows, columns, form, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep_pair(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> tuple[Tensor | None, ...]:
        if v is None:
            return (None,) * 6
        grad, cells = ctx.saved_tensors
        dg = _forward(v, cells, None, *ctx.settings) if ctx.needs_input_grad[0] else None
        dw = _grad_cells(grad, v, *ctx.settings) if ctx.needs_input_grad[1] else None
        return dg, dw, None, None, None, None

    @staticmethod
    def push(ctx: Any, dg: Tensor | None, dw: Tensor | None, *rest: Any) -> Tensor | None:
        grad, cells = ctx.saved_tensors
        by_grad = None if dg is None else _grad_input(dg, cells, *ctx.settings)
        return sum_of(by_grad, None if dw is None else _grad_input(grad, dw, *ctx.settings))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], grad: Tensor, cells: Tensor, *settings: Any) -> tuple[Tensor, int]:
        count = info.batch_size
        if in_dims[1] is None:
            images = grad.movedim(in_dims[0], 0)
            return apply(_GradInput, images.flatten(0, 1), cells, *settings).unflatten(0, images.shape[:2]), 0
        wide, many = _into_channels(grad, in_dims[0], count), _leading(cells, in_dims[1], count)
        return apply(_GradInput, wide, many.flatten(0, 1), *settings).unflatten(1, many.shape[:2]), 1


class _GradCells(Function):
    """``G_w(g, x)``."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, rows: Sizes, columns: Sizes, form: str, backend: str) -> Tensor:
        _prepare()
        return registration.grad_cells(grad, x, rows, columns, form, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep_pair(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None) -> tuple[Tensor | None, ...]:
        if u is None:
            return (None,) * 6
        grad, x = ctx.saved_tensors
        dg = _forward(x, u, None, *ctx.settings) if ctx.needs_input_grad[0] else None
        dx = _grad_input(grad, u, *ctx.settings) if ctx.needs_input_grad[1] else None
        return dg, dx, None, None, None, None

    @staticmethod
    def push(ctx: Any, dg: Tensor | None, dx: Tensor | None, *rest: Any) -> Tensor | None:
        grad, x = ctx.saved_tensors
        by_grad = None if dg is None else _grad_cells(dg, x, *ctx.settings)
        return sum_of(by_grad, None if dx is None else _grad_cells(grad, dx, *ctx.settings))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], grad: Tensor, x: Tensor, *settings: Any) -> tuple[Tensor, int]:
        count = info.batch_size
        wide = (_into_channels(image, dim, count) for image, dim in zip((grad, x), in_dims[:2], strict=True))
        channels = x.shape[1] if in_dims[1] is None else x.movedim(in_dims[1], 0).shape[2]
        return apply(_GradCells, *wide, *settings).unflatten(0, (count, channels)), 0


def _prepare() -> None:
    prepare()
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() > 0:
        flops.teach_counters()


def _keep_pair(ctx: Any, inputs: tuple[Any, ...]) -> None:
    first, second, *ctx.settings = inputs
    save_operands(ctx, first, second)


def _into_channels(x: Tensor, dim: int | None, count: int) -> Tensor:
    """Return images with the mapped dimension, or `count` copies where there is none, folded into C."""
    many = x.unsqueeze(1).expand(-1, count, -1, -1, -1) if dim is None else x.movedim(dim, 1)
    return many.flatten(1, 2)


def _leading(parameters: Tensor, dim: int | None, count: int) -> Tensor:
    """Return cells or biases (B, C, ...): the mapped dimension first, or `count` copies."""
    return parameters.expand(count, *parameters.shape) if dim is None else parameters.movedim(dim, 0)


def _register(operator: Any, function: type[Function]) -> None:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        function.setup_context(ctx, inputs, output)

    operator.register_autograd(function.backward, setup_context=setup)


_register(registration.forward, _Forward)
_register(registration.grad_input, _GradInput)
_register(registration.grad_cells, _GradCells)
