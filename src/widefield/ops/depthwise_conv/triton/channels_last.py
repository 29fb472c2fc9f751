"""Row-Toeplitz kernel on channels_last tensors: a dot with a batch of neighbouring channels, no copy of the input.

The same products as in `rows`, for as many channels at once as make a wide load; batched dots run on mma.sync.
"""

# Kernel bodies are Triton's language, not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# ruff: noqa: N803, N806

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.epilogue import Activation, finished
from widefield.ops.depthwise_conv.triton.geometry import as_forward, band
from widefield.ops.depthwise_conv.triton.launch import compile_case as launch_case
from widefield.ops.depthwise_conv.triton.launch import on_device, options, vector
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, TileConfig


@triton.jit(do_not_specialize=["N"])
def channels_last_kernel(
    x_ptr,
    v_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    N,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    P: tl.constexpr,
    Q: tl.constexpr,
    KH: tl.constexpr,
    PAD: tl.constexpr,
    GAP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ANCHORED: tl.constexpr,
    DISTANCE: tl.constexpr,
    BASE: tl.constexpr,
    LENGTH: tl.constexpr,
    VECTOR: tl.constexpr,
    VECTOR_BYTES: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    INT64: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Compute BM rows (of all images in order) by BN columns of CHANNELS channels; channels slowest in the grid."""
    COLUMN_TILES: tl.constexpr = (Q + BN - 1) // BN
    pid = tl.program_id(0)
    row_tiles = (N * P + BM - 1) // BM
    m = (pid % row_tiles) * BM + tl.arange(0, BM)
    rest = pid // row_tiles
    j0 = (rest % COLUMN_TILES) * BN
    c = (rest // COLUMN_TILES) * CHANNELS + tl.arange(0, CHANNELS)
    n = m // P
    i = m - n * P
    if INT64:
        n = n.to(tl.int64)
        c = c.to(tl.int64)
    is_row = n < N
    is_channel = c < C
    # Masked-off lanes get addresses within the tensors: hardware may look at them.
    n = tl.where(is_row, n, 0)
    i = tl.where(is_row, i, 0)
    c = tl.where(is_channel, c, tl.arange(0, CHANNELS) % VECTOR)
    kk = tl.arange(0, BK)
    jj = tl.arange(0, BN)
    distance = -j0 if ANCHORED else DISTANCE
    shift = kk % 8
    taps = (shift * LENGTH + BASE + shift - kk)[None, :, None] + (jj - distance)[None, None, :]
    taps = taps + (c * (KH * 8 * LENGTH))[:, None, None]
    acc = tl.zeros((CHANNELS, BM, BN), dtype=tl.float32)
    for step in range(0, KH * CHUNKS):
        ky = step // CHUNKS
        k = (step - ky * CHUNKS) * BK
        h = i + (ky * GAP - PAD)
        is_inside = is_row & (h >= 0) & (h < H)
        w = j0 + distance + k + kk
        is_column = (w >= 0) & (w < W)
        row = (n * H + tl.where(is_inside, h, 0)) * W
        pixel = row[:, None, None] + tl.where(is_column, w, 0)[None, :, None]
        x_tile = x_ptr + pixel * C + c[None, None, :]
        x_tile = tl.max_contiguous(tl.multiple_of(x_tile, (1, 1, VECTOR_BYTES)), (1, 1, VECTOR))
        is_read = is_inside[:, None, None] & is_column[None, :, None] & is_channel[None, None, :]
        a = tl.permute(tl.load(x_tile, mask=is_read, other=0.0, cache_modifier=".ca"), (2, 0, 1))
        t_tile = v_ptr + ky * (8 * LENGTH) + (taps - k)
        t_tile = tl.max_contiguous(tl.multiple_of(t_tile, (1, 1, 16)), (1, 1, 8))
        b = tl.load(t_tile, cache_modifier=".ca")
        if UP:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    y = tl.permute(acc, (1, 2, 0))
    bias = tl.zeros((1, 1, CHANNELS), dtype=tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c).to(tl.float32)[None, None, :]
    j = j0 + jj
    offsets = (((n * P + i) * Q)[:, None, None] + j[None, :, None]) * C + c[None, None, :]
    mask = is_row[:, None, None] & (j < Q)[None, :, None] & is_channel[None, None, :]
    y = finished(y, bias, residual_ptr, offsets, mask, HAS_RESIDUAL, ACTIVATION)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@lru_cache(maxsize=4096)
def _constants(problem: Problem, config: TileConfig, itemsize: int, lanes: int) -> dict[str, object]:
    (height, width), shape = problem.output_size, band(problem, 1, config.block_n, config.block_k)
    return {
        "C": problem.channels,
        "H": problem.height,
        "W": problem.width,
        "P": height,
        "Q": width,
        "KH": problem.kernel_size[0],
        "PAD": problem.padding[0],
        "GAP": problem.dilation[0],
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.block_k,
        "CHANNELS": config.channels,
        "CHUNKS": shape.chunks,
        "ANCHORED": shape.is_anchored,
        "DISTANCE": shape.distance,
        "BASE": shape.base,
        "LENGTH": shape.length,
        "VECTOR": lanes,
        "VECTOR_BYTES": lanes * itemsize,
    }


def grid_size(problem: Problem, config: TileConfig) -> int:
    """Return the number of programs."""
    height, width = problem.output_size
    tiles = -(-problem.batch * height // config.block_m) * -(-width // config.block_n)
    return tiles * -(-problem.channels // config.channels)


def launch(
    x: Tensor,
    expanded: Tensor,
    bias: Tensor | None,
    problem: Problem,
    config: TileConfig,
    *,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve; arguments and result as `rows.launch`, every image tensor in channels_last format."""
    if out is None:
        shape = (problem.batch, problem.channels, *problem.output_size)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    lanes = vector(x, problem.channels, config.vector)
    with on_device(x):
        channels_last_kernel[(grid_size(problem, config),)](
            x,
            expanded,
            x if bias is None else bias,
            x if residual is None else residual,
            out,
            problem.batch,
            **_constants(problem, config, x.element_size(), lanes),
            **options(config, x, (expanded, out), bias, residual, activation),
        )
    return out


POINTERS = ("x_ptr", "v_ptr", "bias_ptr", "residual_ptr", "y_ptr")


def compile_case(problem: Problem, pass_: Pass, config: TileConfig, dtype: torch.dtype) -> CompileCase:
    """Return the compile that `launch` asks for, with tensors on 16 bytes."""
    form = as_forward(problem, pass_)
    lanes = math.gcd(math.gcd(form.channels, config.vector), 16 // dtype.itemsize)
    constants = _constants(form, config, dtype.itemsize, lanes)
    return launch_case(channels_last_kernel, POINTERS, ("N",), constants, problem, pass_, config, dtype)
