"""What happens to an accumulator before it is stored, in float32: bias, residual, activation."""

# Kernel bodies are Triton's language, not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# ruff: noqa: N803

from __future__ import annotations

from typing import Literal

import triton
import triton.language as tl

Activation = Literal["relu", "gelu", "silu"]


@triton.jit
def finished(
    acc,
    bias,
    residual_ptr,
    offsets,
    mask,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Return ``activation(acc + bias + residual)``; masked-off residuals are read nowhere."""
    acc += bias
    if HAS_RESIDUAL:
        safe = tl.where(mask, offsets, 0)
        acc += tl.load(residual_ptr + safe, mask=mask, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        acc = tl.where(acc < 0, 0.0, acc)
    elif ACTIVATION == "gelu":
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    elif ACTIVATION == "silu":
        acc = acc / (1.0 + tl.exp(-acc))
    return acc
