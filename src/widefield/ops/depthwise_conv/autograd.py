"""Differentiation of the three maps: each derivative is again one of them, so every order is covered.

With ``F``, ``G_x`` and ``G_w`` the maps: dF = (G_x(g, w), G_w(g, x)), dG_x = (F(v, w), G_w(g, v)),
dG_w = (F(x, u), G_x(g, u)); forwards, each map of the one tangent and the other operand, added up. Ordinary autograd
functions, since ``torch.func`` needs their ``setup_context``, ``jvp`` and ``vmap``; under ``vmap`` a batch of inputs
joins N, a batch of kernels joins C.
"""

# torch leaves the context of an autograd function open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportIncompatibleMethodOverride=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, forward_ad

from widefield.ops.depthwise_conv import flops, maps, registration
from widefield.ops.functions import apply, is_batched, is_jit_traced, is_transformed, mapped, save_operands, sum_of
from widefield.ops.sharding import prepare

Pair = tuple[int, int]
Dims = tuple[int | None, ...]


def is_traced(x: Tensor) -> bool:
    """Whether what happens to `x` is being recorded or counted, so that the registered operators must be seen."""
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or x.is_meta
        or torch._C._len_torch_dispatch_stack() > 0
    )


def is_seen(x: Tensor) -> bool:
    """Whether what happens to `x` is recorded, counted, transformed or differentiated forwards."""
    return is_traced(x) or is_transformed()


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *spacing: Any) -> Tensor:
    """``F(x, w) + b`` by the shortest way that records what has to be recorded."""
    if is_jit_traced():
        # What is traced is to run on images of any size, and without this library.
        stride, padding, dilation, _ = spacing
        return F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[1])
    if is_seen(x):
        return mapped(Forward, registration.forward, x, weight, bias, *spacing)
    return (EagerForward.apply if _wants_gradient(x, weight, bias) else maps.forward)(x, weight, bias, *spacing)


def _grad_input(grad: Tensor, weight: Tensor, *values: Any) -> Tensor:
    if is_seen(grad) or is_batched(grad) or _wants_gradient(grad, weight):
        return mapped(GradInput, registration.grad_input, grad, weight, *values)
    return maps.grad_input(grad, weight, *values)


def _grad_weight(grad: Tensor, x: Tensor, *values: Any) -> Tensor:
    if is_seen(grad) or is_batched(grad) or _wants_gradient(grad, x):
        return mapped(GradWeight, registration.grad_weight, grad, x, *values)
    return maps.grad_weight(grad, x, *values)


def _call(map_: Callable[..., Tensor], operator: Callable[..., Tensor], image: Tensor, *values: Any) -> Tensor:
    if not is_traced(image):
        return map_(image, *values)
    prepare()
    if not torch.compiler.is_compiling():
        flops.teach_counters()
    return operator(image, *values)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class Forward(Function):
    """``F(x, w) + b``, and its derivatives."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, backend: str
    ) -> Tensor:
        """Run the map."""
        return _call(maps.forward, registration.forward, x, weight, bias, stride, padding, dilation, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the wanted gradients read."""
        x, weight, bias, *ctx.spacing = inputs
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.has_bias, ctx.size, ctx.kernel = bias is not None, tuple(x.shape), tuple(weight.shape[2:])
        ctx.output_size = tuple(output.shape)
        is_forward = forward_ad._current_level >= 0
        save_operands(ctx, x if needs_weight or is_forward else None, weight if needs_x or is_forward else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        """(G_x(g, w), G_w(g, x), sum of g)."""
        if grad is None:
            return (None,) * 7
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = _grad_input(grad, weight, ctx.size, *ctx.spacing) if needs_x else None
        dw = _grad_weight(grad, x, ctx.kernel, *ctx.spacing) if needs_weight else None
        db = grad.sum((0, 2, 3)) if ctx.has_bias and needs_bias else None
        return dx, dw, db, None, None, None, None

    @staticmethod
    def push(ctx: Any, dx: Tensor | None, dw: Tensor | None, db: Tensor | None, *rest: Any) -> Tensor | None:
        """F(dx, w) + F(x, dw) + db."""
        x, weight = ctx.saved_tensors
        by_x = None if dx is None else forward(dx, weight, None, *ctx.spacing)
        by_weight = None if dw is None else forward(x, dw, None, *ctx.spacing)
        by_bias = None if db is None else db[:, None, None].expand(ctx.output_size)
        return sum_of(by_x, by_weight, by_bias)

    @staticmethod
    def vmap(info: Any, in_dims: Dims, x: Tensor, weight: Tensor, bias: Tensor | None, *spacing: Any) -> Any:
        """Fold the batch into N if the weight has none, else into C."""
        batch = info.batch_size
        if in_dims[1] is not None:
            bias = None if bias is None else _leading(bias, in_dims[2], batch).flatten(0, 1)
            kernels = _leading(weight, in_dims[1], batch)
            y = apply(Forward, _joined(x, in_dims[0], batch), kernels.flatten(0, 1), bias, *spacing)
            return y.unflatten(1, kernels.shape[:2]), 1
        common = None if in_dims[2] is not None else bias
        if in_dims[0] is None:
            y = apply(Forward, x, weight, common, *spacing).unsqueeze(0)
        else:
            images = _leading(x, in_dims[0], batch)
            y = apply(Forward, images.flatten(0, 1), weight, common, *spacing).unflatten(0, images.shape[:2])
        if bias is not None and in_dims[2] is not None:
            y = y + bias.movedim(in_dims[2], 0)[:, None, :, None, None]
        return y, 0


class EagerForward(Function):
    """The same for ordinary tensors, in the older style: torch takes 90 microseconds to call one of the newer."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """Run the map, and keep what the wanted gradients read."""
        y = maps.forward(*inputs)
        Forward.setup_context(ctx, inputs, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """As `Forward.backward`."""
        return Forward.backward(ctx, grad)


class GradInput(Function):
    """``G_x(g, w)``, and its derivatives."""

    @staticmethod
    def forward(
        grad: Tensor, weight: Tensor, size: tuple[int, ...], stride: Pair, padding: Pair, dilation: Pair, backend: str
    ) -> Tensor:
        """Run the map; `size` is that of x."""
        operator = registration.grad_input
        return _call(maps.grad_input, operator, grad, weight, list(size), stride, padding, dilation, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep both operands."""
        grad, weight, ctx.size, *ctx.spacing = inputs
        save_operands(ctx, grad, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> tuple[Tensor | None, ...]:
        """(F(v, w), G_w(g, v))."""
        if v is None:
            return (None,) * 7
        grad, weight = ctx.saved_tensors
        dg = forward(v, weight, None, *ctx.spacing) if ctx.needs_input_grad[0] else None
        dw = _grad_weight(grad, v, tuple(weight.shape[2:]), *ctx.spacing) if ctx.needs_input_grad[1] else None
        return dg, dw, None, None, None, None, None

    @staticmethod
    def push(ctx: Any, dg: Tensor | None, dw: Tensor | None, *rest: Any) -> Tensor | None:
        """G_x(dg, w) + G_x(g, dw)."""
        grad, weight = ctx.saved_tensors
        by_grad = None if dg is None else _grad_input(dg, weight, ctx.size, *ctx.spacing)
        return sum_of(by_grad, None if dw is None else _grad_input(grad, dw, ctx.size, *ctx.spacing))

    @staticmethod
    def vmap(info: Any, in_dims: Dims, grad: Tensor, weight: Tensor, size: tuple[int, ...], *spacing: Any) -> Any:
        """Fold the batch into N if only g has one, else into C."""
        batch = info.batch_size
        if in_dims[1] is None:
            images = _leading(grad, in_dims[0], batch).flatten(0, 1)
            dx = apply(GradInput, images, weight, (batch * size[0], *size[1:]), *spacing)
            return dx.unflatten(0, (batch, size[0])), 0
        images, kernels = _joined(grad, in_dims[0], batch), _leading(weight, in_dims[1], batch).flatten(0, 1)
        dx = apply(GradInput, images, kernels, (size[0], batch * size[1], *size[2:]), *spacing)
        return dx.unflatten(1, (batch, size[1])), 1


class GradWeight(Function):
    """``G_w(g, x)``, and its derivatives."""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, backend: str
    ) -> Tensor:
        """Run the map."""
        operator = registration.grad_weight
        return _call(maps.grad_weight, operator, grad, x, list(kernel), stride, padding, dilation, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep both operands."""
        grad, x, ctx.kernel, *ctx.spacing = inputs
        save_operands(ctx, grad, x)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None) -> tuple[Tensor | None, ...]:
        """(F(x, u), G_x(g, u))."""
        if u is None:
            return (None,) * 7
        grad, x = ctx.saved_tensors
        dg = forward(x, u, None, *ctx.spacing) if ctx.needs_input_grad[0] else None
        dx = _grad_input(grad, u, tuple(x.shape), *ctx.spacing) if ctx.needs_input_grad[1] else None
        return dg, dx, None, None, None, None, None

    @staticmethod
    def push(ctx: Any, dg: Tensor | None, dx: Tensor | None, *rest: Any) -> Tensor | None:
        """G_w(dg, x) + G_w(g, dx)."""
        grad, x = ctx.saved_tensors
        by_grad = None if dg is None else _grad_weight(dg, x, ctx.kernel, *ctx.spacing)
        return sum_of(by_grad, None if dx is None else _grad_weight(grad, dx, ctx.kernel, *ctx.spacing))

    @staticmethod
    def vmap(info: Any, in_dims: Dims, grad: Tensor, x: Tensor, kernel: Pair, *spacing: Any) -> Any:
        """Fold the batch into C."""
        batch = info.batch_size
        images = _joined(grad, in_dims[0], batch), _joined(x, in_dims[1], batch)
        channels = _leading(x, in_dims[1], batch).shape[2]
        return apply(GradWeight, *images, kernel, *spacing).unflatten(0, (batch, channels)), 0


def _leading(x: Tensor, dim: int | None, batch: int) -> Tensor:
    """(..., B, ...) -> (B, ...), expanded if there is no B."""
    return x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)


def _joined(x: Tensor, dim: int | None, batch: int) -> Tensor:
    """Images of B batches -> (N, B C, H, W)."""
    return _leading(x, dim, batch).transpose(0, 1).flatten(1, 2)
