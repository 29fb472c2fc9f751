"""Floating-point operations of the registered operators, for torch's `FlopCounterMode`.

torch's counter is not imported for it, since that would import Triton: it is taught when one is at work.
"""

# The stack of modes has no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Shape = Sequence[int]


def forward(x_shape: Shape, weight_shape: Shape, *rest: Any, out_shape: Shape, **unused: Any) -> int:
    """Two operations for each output and tap, padding included, as torch counts its own convolutions."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[2:])


def grad_input(grad_shape: Shape, weight_shape: Shape, *rest: Any, out_shape: Shape, **unused: Any) -> int:
    """The same for each element of the output's gradient."""
    return 2 * math.prod(grad_shape) * math.prod(weight_shape[2:])


def grad_weight(grad_shape: Shape, x_shape: Shape, *rest: Any, out_shape: Shape, **unused: Any) -> int:
    """The same again: one product for each element of the gradient and each tap."""
    return 2 * math.prod(grad_shape) * math.prod(out_shape[2:])


def teach_counters() -> None:
    """Give every FLOP counter at work the formulas, unless it has its own."""
    for mode in _get_current_dispatch_mode_stack():
        registry: Any = getattr(getattr(mode, "counter", None), "flop_registry", None)
        if registry is not None:
            operators = torch.ops.widefield
            for operator, formula in (
                (operators.depthwise_conv_forward, forward),
                (operators.depthwise_conv_grad_input, grad_input),
                (operators.depthwise_conv_grad_weight, grad_weight),
            ):
                registry.setdefault(operator, _unwrapped(formula))


def _unwrapped(formula: Any) -> Any:
    def count(*values: Any, out_val: Any = None, **named: Any) -> int:
        shapes = [tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in values]
        return formula(*shapes, out_shape=tuple(out_val.shape), **named)

    return count
