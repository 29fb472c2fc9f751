"""Row-Toeplitz kernel: for each row of taps, image rows times the Toeplitz matrix of that row, on tensor cores.

``y[(n, i), j] = sum over ky of x[(n, i + ky), :] @ T_ky[:, j]``, where ``T_ky[j', j] = w[ky, j' - j + padding]`` is
read from the shifted copies of `expand`. One channel at a time; any map, kernel, padding and dilation.
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


@triton.jit(do_not_specialize=["N", "C"])
def rows_kernel(
    x_ptr,
    v_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    N,
    C,
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
    ROWS: tl.constexpr,
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
    """Compute a tile of BM rows by BN columns of one channel; grid (row tiles x column tiles x C), channel slowest."""
    COLUMN_TILES: tl.constexpr = (Q + BN - 1) // BN
    pid = tl.program_id(0)
    r = tl.arange(0, BM)
    if ROWS == 0:
        row_tiles = (N * P + BM - 1) // BM
        m = (pid % row_tiles) * BM + r
        n = m // P
        i = m - n * P
        first = 0
        last = KH
    else:
        ROW_TILES: tl.constexpr = (P + ROWS - 1) // ROWS
        row_tiles = ROW_TILES * ((N + BM // ROWS - 1) // (BM // ROWS))
        tile = pid % row_tiles
        top = (tile % ROW_TILES) * ROWS
        n = (tile // ROW_TILES) * (BM // ROWS) + r // ROWS
        i = top + r % ROWS
        # Rows of taps that meet no row of the image in this tile are left out.
        first = (tl.maximum(PAD - top - ROWS + 1, 0) + GAP - 1) // GAP
        last = tl.minimum((tl.maximum(H - 1 + PAD - top, -GAP) + GAP) // GAP, KH)
    rest = pid // row_tiles
    c = rest // COLUMN_TILES
    j0 = (rest % COLUMN_TILES) * BN
    if INT64:
        c = c.to(tl.int64)
        n = n.to(tl.int64)
    is_row = (n < N) & (i < P)
    # Masked-off lanes get addresses within the tensors: hardware may look at them.
    plane = tl.where(is_row, n, 0) * C + c
    i = tl.where(is_row, i, 0)
    kk = tl.arange(0, BK)
    jj = tl.arange(0, BN)
    distance = -j0 if ANCHORED else DISTANCE
    shift = kk % 8
    taps = (shift * LENGTH + BASE + shift - kk)[:, None] + (jj - distance)[None, :]
    v_ptr += c * (KH * 8 * LENGTH)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(first * CHUNKS, last * CHUNKS):
        ky = step // CHUNKS
        k = (step - ky * CHUNKS) * BK
        h = i + (ky * GAP - PAD)
        is_inside = is_row & (h >= 0) & (h < H)
        w = j0 + distance + k + kk
        is_column = (w >= 0) & (w < W)
        row = plane * (H * W) + tl.where(is_inside, h, 0) * W
        x_tile = x_ptr + row[:, None] + tl.where(is_column, w, kk % VECTOR)[None, :]
        x_tile = tl.max_contiguous(tl.multiple_of(x_tile, (1, VECTOR_BYTES)), (1, VECTOR))
        a = tl.load(x_tile, mask=is_inside[:, None] & is_column[None, :], other=0.0, cache_modifier=".ca")
        t_tile = v_ptr + ky * (8 * LENGTH) + (taps - k)
        t_tile = tl.max_contiguous(tl.multiple_of(t_tile, (1, 16)), (1, 8))
        b = tl.load(t_tile, cache_modifier=".ca")
        if UP:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c).to(tl.float32)
    j = j0 + jj
    offsets = (plane * (P * Q) + i * Q)[:, None] + j[None, :]
    mask = is_row[:, None] & (j < Q)[None, :]
    acc = finished(acc, bias, residual_ptr, offsets, mask, HAS_RESIDUAL, ACTIVATION)
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=mask)


@lru_cache(maxsize=4096)
def _constants(problem: Problem, config: TileConfig, itemsize: int, lanes: int, pitch: int) -> dict[str, object]:
    (height, width), shape = problem.output_size, band(problem, 1, config.block_n, config.block_k)
    return {
        "H": problem.height,
        "W": pitch,
        "P": height,
        "Q": width,
        "KH": problem.kernel_size[0],
        "PAD": problem.padding[0],
        "GAP": problem.dilation[0],
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.block_k,
        "ROWS": config.rows,
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
    if config.rows:
        row_tiles = -(-height // config.rows) * -(-problem.batch // (config.block_m // config.rows))
    else:
        row_tiles = -(-problem.batch * height // config.block_m)
    return row_tiles * -(-width // config.block_n) * problem.channels


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
    """Convolve.

    Args:
        x: (N, C, H, W), contiguous; W may exceed the problem's width by columns of zeros.
        expanded: The kernel's copies for ``band(problem, 1, block_n, block_k)``, from `expand`.
        bias: (C,) or none.
        problem: A forward problem (`geometry.as_forward`).
        config: Tiles.
        activation: What is applied last.
        residual: (N, C, P, Q), contiguous, added before the activation.
        out: Where to write, (N, C, P, Q), contiguous; else a new tensor.

    Returns:
        ``activation(F(x, w) + bias + residual)``, (N, C, P, Q).
    """
    if out is None:
        out = x.new_empty((problem.batch, problem.channels, *problem.output_size))
    pitch = x.shape[3]
    lanes = vector(x, pitch, config.vector)
    with on_device(x):
        rows_kernel[(grid_size(problem, config),)](
            x,
            expanded,
            x if bias is None else bias,
            x if residual is None else residual,
            out,
            problem.batch,
            problem.channels,
            **_constants(problem, config, x.element_size(), lanes, pitch),
            **options(config, x, (expanded, out), bias, residual, activation),
        )
    return out


POINTERS = ("x_ptr", "v_ptr", "bias_ptr", "residual_ptr", "y_ptr")


def compile_case(problem: Problem, pass_: Pass, config: TileConfig, dtype: torch.dtype) -> CompileCase:
    """Return the compile that `launch` asks for, with tensors on 16 bytes."""
    form = as_forward(problem, pass_)
    pitch = form.width + (-form.width % 8 if config.is_padded else 0)
    lanes = math.gcd(math.gcd(pitch, config.vector), 16 // dtype.itemsize)
    constants = _constants(form, config, dtype.itemsize, lanes, pitch)
    return launch_case(rows_kernel, POINTERS, ("N", "C"), constants, problem, pass_, config, dtype)
