"""Column-Toeplitz kernel, for tall kernels: for each column of taps, the Toeplitz matrix along H times image columns.

``y[i, (n, j)] = sum over kx of T_kx[i, :] @ x[:, (n, j + kx)]``. A 51 x 5 stripe takes 5 dots instead of 51. The
input is read at column offsets that lie on no boundary, so loads are narrow.
"""

# Kernel bodies are Triton's language, not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# ruff: noqa: N803, N806

from __future__ import annotations

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
from widefield.ops.depthwise_conv.triton.launch import on_device, options
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, TileConfig


@triton.jit(do_not_specialize=["N", "C"])
def columns_kernel(
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
    KW: tl.constexpr,
    PAD: tl.constexpr,
    GAP: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    CHUNKS: tl.constexpr,
    ANCHORED: tl.constexpr,
    DISTANCE: tl.constexpr,
    BASE: tl.constexpr,
    LENGTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    INT64: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Compute BN rows of BM columns (of all images in order) of one channel; channel slowest in the grid."""
    ROW_TILES: tl.constexpr = (P + BN - 1) // BN
    pid = tl.program_id(0)
    column_tiles = (N * Q + BM - 1) // BM
    m = (pid % column_tiles) * BM + tl.arange(0, BM)
    rest = pid // column_tiles
    c = rest // ROW_TILES
    i0 = (rest % ROW_TILES) * BN
    n = m // Q
    j = m - n * Q
    if INT64:
        c = c.to(tl.int64)
        n = n.to(tl.int64)
    is_column = n < N
    # Masked-off lanes get addresses within the tensors: hardware may look at them.
    plane = tl.where(is_column, n, 0) * C + c
    kk = tl.arange(0, BK)
    ii = tl.arange(0, BN)
    distance = -i0 if ANCHORED else DISTANCE
    shift = kk % 8
    taps = (shift * LENGTH + BASE + shift - kk)[:, None] + (ii - distance)[None, :]
    v_ptr += c * (KW * 8 * LENGTH)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, KW * CHUNKS):
        kx = step // CHUNKS
        k = (step - kx * CHUNKS) * BK
        w = j + (kx * GAP - PAD)
        is_inside = is_column & (w >= 0) & (w < W)
        h = i0 + distance + k + kk
        is_row = (h >= 0) & (h < H)
        start = plane * (H * W) + tl.where(is_inside, w, 0)
        x_tile = x_ptr + start[:, None] + (tl.where(is_row, h, 0) * W)[None, :]
        a = tl.load(x_tile, mask=is_inside[:, None] & is_row[None, :], other=0.0)
        t_tile = v_ptr + kx * (8 * LENGTH) + (taps - k)
        t_tile = tl.max_contiguous(tl.multiple_of(t_tile, (1, 16)), (1, 8))
        b = tl.load(t_tile, cache_modifier=".ca")
        if UP:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c).to(tl.float32)
    i = i0 + ii
    offsets = (plane * (P * Q) + j)[:, None] + (i * Q)[None, :]
    mask = is_column[:, None] & (i < P)[None, :]
    acc = finished(acc, bias, residual_ptr, offsets, mask, HAS_RESIDUAL, ACTIVATION)
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=mask)


@lru_cache(maxsize=4096)
def _constants(problem: Problem, config: TileConfig) -> dict[str, object]:
    (height, width), shape = problem.output_size, band(problem, 0, config.block_n, config.block_k)
    return {
        "H": problem.height,
        "W": problem.width,
        "P": height,
        "Q": width,
        "KW": problem.kernel_size[1],
        "PAD": problem.padding[1],
        "GAP": problem.dilation[1],
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.block_k,
        "CHUNKS": shape.chunks,
        "ANCHORED": shape.is_anchored,
        "DISTANCE": shape.distance,
        "BASE": shape.base,
        "LENGTH": shape.length,
    }


def grid_size(problem: Problem, config: TileConfig) -> int:
    """Return the number of programs."""
    height, width = problem.output_size
    return -(-problem.batch * width // config.block_m) * -(-height // config.block_n) * problem.channels


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
    """Convolve; arguments and result as `rows.launch`, the copies for ``band(problem, 0, block_n, block_k)``."""
    if out is None:
        out = x.new_empty((problem.batch, problem.channels, *problem.output_size))
    with on_device(x):
        columns_kernel[(grid_size(problem, config),)](
            x,
            expanded,
            x if bias is None else bias,
            x if residual is None else residual,
            out,
            problem.batch,
            problem.channels,
            **_constants(problem, config),
            **options(config, x, (expanded, out), bias, residual, activation),
        )
    return out


POINTERS = ("x_ptr", "v_ptr", "bias_ptr", "residual_ptr", "y_ptr")


def compile_case(problem: Problem, pass_: Pass, config: TileConfig, dtype: torch.dtype) -> CompileCase:
    """Return the compile that `launch` asks for, with tensors on 16 bytes."""
    constants = _constants(as_forward(problem, pass_), config)
    return launch_case(columns_kernel, POINTERS, ("N", "C"), constants, problem, pass_, config, dtype)
