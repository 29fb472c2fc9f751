"""Kernel rows as Toeplitz tiles read them: backwards, between zeros, eight times, each copy one element further on.

Row kk of a tile is then ``length`` contiguous elements that start on 16 bytes whatever the offset, so the tile is never
materialised. The copies take 8 (K + tile) elements for each row of taps: kilobytes a channel, which the L1 cache holds.
"""

# Kernel bodies are Triton's language, not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.geometry import SHIFTS, Band, span
from widefield.ops.depthwise_conv.triton.launch import on_device
from widefield.ops.weight_cache import derived


@triton.jit
def expand_kernel(
    w_ptr,
    v_ptr,
    stride_c,
    stride_line,
    stride_tap,
    LINES: tl.constexpr,
    SPAN: tl.constexpr,
    TAPS: tl.constexpr,
    GAP: tl.constexpr,
    PAD: tl.constexpr,
    BASE: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    FLIP: tl.constexpr,
):
    """Write ``v[c, line, s, t] = w[c, line, tap]`` with ``tap * GAP = BASE - (t - s) + PAD``, and zeros elsewhere."""
    pid = tl.program_id(0)
    c = (pid // LINES).to(tl.int64)
    line = pid % LINES
    s = tl.arange(0, 8)[:, None]
    t = tl.arange(0, BLOCK)[None, :]
    place = BASE - (t - s) + PAD
    is_tap = (place >= 0) & (place < SPAN) & (place % GAP == 0)
    tap = tl.where(is_tap, place // GAP, 0)
    if FLIP:
        tap = TAPS - 1 - tap
        line = LINES - 1 - line
    v = tl.load(w_ptr + c * stride_c + line * stride_line + tap * stride_tap, mask=is_tap, other=0.0)
    tl.store(v_ptr + pid.to(tl.int64) * (8 * LENGTH) + s * LENGTH + t, v, mask=(t < LENGTH) & (s < 8))


def expand(weight: Tensor, problem: Problem, axis: int, shape: Band, *, is_flipped: bool) -> Tensor:
    """Return the shifted copies of every line of taps, remembered while the weight stays the same.

    Args:
        weight: (C, 1, K_h, K_w), any strides.
        problem: The forward problem that the tiles belong to (`geometry.as_forward`).
        axis: Along which the taps run: 1 for lines that are kernel rows, 0 for kernel columns.
        shape: The band along that axis.
        is_flipped: Whether to turn the kernel by 180 degrees, as the gradient of the input needs it.

    Returns:
        (C, lines, 8, length), dtype of the problem.
    """
    key = ("triton", axis, is_flipped, problem.dtype, problem.dilation, problem.padding, shape)
    return derived(weight, key, lambda: _expanded(weight, problem, axis, shape, is_flipped=is_flipped))


def _expanded(weight: Tensor, problem: Problem, axis: int, shape: Band, *, is_flipped: bool) -> Tensor:
    weight = weight.detach().to(problem.dtype)
    lines, taps = weight.shape[2 + (1 - axis)], weight.shape[2 + axis]
    out = torch.empty((problem.channels, lines, SHIFTS, shape.length), dtype=weight.dtype, device=weight.device)
    with on_device(weight):
        expand_kernel[(problem.channels * lines,)](
            weight,
            out,
            weight.stride(0),
            weight.stride(2 + (1 - axis)),
            weight.stride(2 + axis),
            LINES=lines,
            SPAN=span(problem, axis),
            TAPS=taps,
            GAP=problem.dilation[axis],
            PAD=problem.padding[axis],
            BASE=shape.base,
            LENGTH=shape.length,
            BLOCK=triton.next_power_of_2(shape.length),
            FLIP=is_flipped,
        )
    return out
