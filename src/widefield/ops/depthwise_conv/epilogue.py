"""What follows a convolution at once: a residual and an activation, within the kernel where that is possible."""

# Whether a transform of torch.func is at work can be asked by a private name alone.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield._core.checks import check, check_name
from widefield.ops.depthwise_conv import maps
from widefield.ops.depthwise_conv.autograd import is_traced
from widefield.ops.depthwise_conv.order import machine
from widefield.ops.depthwise_conv.problem import memory_format
from widefield.ops.depthwise_conv.triton.backend import convolve

Activation = Literal["relu", "gelu", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

_FUNCTIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
Pair = tuple[int, int]


def check_activation(activation: str | None) -> None:
    """Refuse an unknown activation."""
    if activation is not None:
        check_name(activation, ACTIVATIONS, "activation")


def finished(y: Tensor, residual: Tensor | None, activation: Activation | None) -> Tensor:
    """Return ``activation(y + residual)``, each if there is one."""
    check(
        residual is None or (residual.shape == y.shape and residual.dtype == y.dtype and residual.device == y.device),
        f"a residual of the output's shape {tuple(y.shape)}, dtype {y.dtype} and device {y.device}",
        "none" if residual is None else f"{tuple(residual.shape)}, {residual.dtype}, {residual.device}",
        "bring it to these",
    )
    y = y if residual is None else y + residual
    return y if activation is None else _FUNCTIONS[activation](y)


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spacing: tuple[Pair, Pair, Pair],
    forced: str,
    residual: Tensor | None,
    activation: Activation | None,
) -> Tensor | None:
    """Run all in one kernel, or return None where there is none: beyond inference, or on another backend.

    Args:
        x: (N, C, H, W), checked and cast, as the other operands are.
        weight: (C, 1, K_h, K_w).
        bias: (C,) or none.
        spacing: Stride, padding, dilation.
        forced: A backend that must run, or the empty string.
        residual: Of the output's shape.
        activation: Or none.
    """
    operands = [tensor for tensor in (x, weight, bias, residual) if tensor is not None]
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in operands)
    if wants_gradient or x.numel() == 0 or is_traced(x) or torch._C._are_functorch_transforms_active():
        return None
    problem = maps.problem_of(x, x.shape, weight.shape[2:], *spacing)
    clipped, margins, backend = maps.chosen(problem, "forward", forced, machine())
    size = (*x.shape[:2], *problem.output_size)
    is_fitting = residual is None or (
        tuple(residual.shape) == size and residual.dtype == x.dtype and residual.device == x.device
    )
    if backend.name != "triton" or not is_fitting:
        return None
    kernel = maps.cut(weight, margins)
    y = convolve(x, kernel, bias, clipped, "forward", activation=activation, residual=residual)
    return y.to(x.dtype).contiguous(memory_format=memory_format(problem.layout))
