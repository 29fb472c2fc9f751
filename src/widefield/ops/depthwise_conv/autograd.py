"""Differentiation of the three maps: each derivative is again one of them, so every order is covered.

With ``F``, ``G_x`` and ``G_w`` the maps: dF = (G_x(g, w), G_w(g, x)), dG_x = (F(v, w), G_w(g, v)),
dG_w = (F(x, u), G_x(g, u)). Ordinary autograd functions, since ``torch.func.grad`` and ``vmap`` need their
``setup_context`` and ``vmap``; under ``vmap`` a batch of inputs joins N, a batch of kernels joins C.
"""

# torch leaves the context of an autograd function open.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportIncompatibleMethodOverride=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from widefield.ops.depthwise_conv import flops, maps, registration

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


def _call(map_: Callable[..., Tensor], operator: Callable[..., Tensor], image: Tensor, *values: Any) -> Tensor:
    if not is_traced(image):
        return map_(image, *values)
    if not torch.compiler.is_compiling():
        flops.teach_counters()
    return operator(image, *values)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *spacing: Any) -> Tensor:
    """``F(x, w) + b`` by the shortest way that records what has to be recorded."""
    if is_seen(x):
        return Forward.apply(x, weight, bias, *spacing)
    return (EagerForward.apply if _wants_gradient(x, weight, bias) else maps.forward)(x, weight, bias, *spacing)


def _grad_input(grad: Tensor, weight: Tensor, *values: Any) -> Tensor:
    is_plain = not is_seen(grad) and not _wants_gradient(grad, weight)
    return (maps.grad_input if is_plain else GradInput.apply)(grad, weight, *values)


def _grad_weight(grad: Tensor, x: Tensor, *values: Any) -> Tensor:
    is_plain = not is_seen(grad) and not _wants_gradient(grad, x)
    return (maps.grad_weight if is_plain else GradWeight.apply)(grad, x, *values)


def is_seen(x: Tensor) -> bool:
    """Whether what happens to `x` is recorded, counted or transformed by `torch.func`."""
    return is_traced(x) or torch._C._are_functorch_transforms_active()


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
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(G_x(g, w), G_w(g, x), sum of g)."""
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dx = _grad_input(grad, weight, ctx.size, *ctx.spacing) if needs_x else None
        dw = _grad_weight(grad, x, ctx.kernel, *ctx.spacing) if needs_weight else None
        db = grad.sum((0, 2, 3)) if ctx.has_bias and needs_bias else None
        return dx, dw, db, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Dims, x: Tensor, weight: Tensor, bias: Tensor | None, *spacing: Any) -> Any:
        """Fold the batch into N if only x has one, else into C."""
        batch = info.batch_size
        if in_dims[1] is None and (bias is None or in_dims[2] is None):
            images = _leading(x, in_dims[0], batch)
            return Forward.apply(images.flatten(0, 1), weight, bias, *spacing).unflatten(0, (batch, -1)), 0
        bias = None if bias is None else _leading(bias, in_dims[2], batch).flatten(0, 1)
        y = Forward.apply(_joined(x, in_dims[0], batch), _kernels(weight, in_dims[1], batch), bias, *spacing)
        return y.unflatten(1, (batch, -1)), 1


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
        grad, weight, _, *ctx.spacing = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        """(F(v, w), G_w(g, v))."""
        grad, weight = ctx.saved_tensors
        dg = Forward.apply(v, weight, None, *ctx.spacing) if ctx.needs_input_grad[0] else None
        dw = GradWeight.apply(grad, v, tuple(weight.shape[2:]), *ctx.spacing) if ctx.needs_input_grad[1] else None
        return dg, dw, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Dims, grad: Tensor, weight: Tensor, size: tuple[int, ...], *spacing: Any) -> Any:
        """Fold the batch into N if only g has one, else into C."""
        batch = info.batch_size
        if in_dims[1] is None:
            images = _leading(grad, in_dims[0], batch).flatten(0, 1)
            dx = GradInput.apply(images, weight, (batch * size[0], *size[1:]), *spacing)
            return dx.unflatten(0, (batch, -1)), 0
        images, kernels = _joined(grad, in_dims[0], batch), _kernels(weight, in_dims[1], batch)
        dx = GradInput.apply(images, kernels, (size[0], batch * size[1], *size[2:]), *spacing)
        return dx.unflatten(1, (batch, -1)), 1


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
        grad, x, _, *ctx.spacing = inputs
        ctx.save_for_backward(grad, x)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        """(F(x, u), G_x(g, u))."""
        grad, x = ctx.saved_tensors
        dg = Forward.apply(x, u, None, *ctx.spacing) if ctx.needs_input_grad[0] else None
        dx = GradInput.apply(grad, u, tuple(x.shape), *ctx.spacing) if ctx.needs_input_grad[1] else None
        return dg, dx, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Dims, grad: Tensor, x: Tensor, kernel: Pair, *spacing: Any) -> Any:
        """Fold the batch into C."""
        batch = info.batch_size
        images = _joined(grad, in_dims[0], batch), _joined(x, in_dims[1], batch)
        return GradWeight.apply(*images, kernel, *spacing).unflatten(0, (batch, -1)), 0


def _leading(x: Tensor, dim: int | None, batch: int) -> Tensor:
    """(..., B, ...) -> (B, ...), expanded if there is no B."""
    return x.expand(batch, *x.shape) if dim is None else x.movedim(dim, 0)


def _joined(x: Tensor, dim: int | None, batch: int) -> Tensor:
    """Images of B batches -> (N, B C, H, W)."""
    return _leading(x, dim, batch).transpose(0, 1).flatten(1, 2)


def _kernels(weight: Tensor, dim: int | None, batch: int) -> Tensor:
    """Kernels of B batches -> (B C, 1, K_h, K_w)."""
    return _leading(weight, dim, batch).flatten(0, 1)
