"""Floating-point operations of the peripheral convolution's three maps: those of the dense kernel, as in the paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from widefield.ops import flop_counters

Ints = Sequence[int]


def forward(x: Ints, cells: Ints, bias: Any, rows: Ints, columns: Ints, *rest: Any, out_shape: Ints) -> int:
    """Two operations for each output and tap, whatever the form that runs needs."""
    return _dense(out_shape, rows, columns)


def gradient(image: Ints, other: Ints, rows: Ints, columns: Ints, *rest: Any, out_shape: Ints) -> int:
    """The same for each element of the output's gradient: input's and cells' alike."""
    return _dense(image, rows, columns)


def teach_counters() -> None:
    """Give every FLOP counter at work these formulas."""
    operators = torch.ops.widefield
    flop_counters.teach_counters(
        {
            operators.peripheral_conv_forward: forward,
            operators.peripheral_conv_grad_input: gradient,
            operators.peripheral_conv_grad_cells: gradient,
        }
    )


def _dense(shape: Ints, rows: Ints, columns: Ints) -> int:
    return 2 * math.prod(shape) * sum(rows) * sum(columns)
