"""Floating-point operations of the depthwise convolution's three maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from widefield.ops import flop_counters

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
    """Give every FLOP counter at work these formulas."""
    operators = torch.ops.widefield
    flop_counters.teach_counters(
        {
            operators.depthwise_conv_forward: forward,
            operators.depthwise_conv_grad_input: grad_input,
            operators.depthwise_conv_grad_weight: grad_weight,
        }
    )
