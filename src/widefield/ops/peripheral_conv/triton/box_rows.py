"""Row-Toeplitz kernel on vertical box sums: one dot for each row of cells instead of one for each row of taps.

``y[(n, i), j] = sum over a of B_a[(n, i), :] @ T_a[:, j]``. Rows of cells that are one tap high read the image itself,
the others the difference of two rows of its prefix sums along H, in float32 until it is rounded once for the dot.
"""

# Kernel bodies are Triton's language, not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# ruff: noqa: N803, N806, SIM108

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from widefield.ops.depthwise_conv.triton.expand import expand
from widefield.ops.depthwise_conv.triton.geometry import band
from widefield.ops.depthwise_conv.triton.launch import (
    TYPE_NAMES,
    needs_int64,
    needs_upcast,
    on_device,
    precision,
    vector,
)
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, fp32_mode
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_conv.triton.tables import cell_table, exclusive_prefix
from widefield.ops.peripheral_kernel.expansion import spread


@dataclass(frozen=True, kw_only=True)
class BoxTiles:
    """Tile of rows (n, i) by output columns, depth of a dot in input columns, and the pipeline."""

    block_m: int = 128
    block_n: int = 64
    block_k: int = 64
    num_warps: int = 8
    num_stages: int = 2


def tiles(problem: PeripheralProblem) -> BoxTiles:
    """Return the tiles for a problem: narrow ones for narrow maps, and the depth that float32 leaves room for."""
    narrow = 16 if problem.width <= 16 else 32 if problem.width <= 32 else 64
    depth = 32 if problem.dtype == torch.float32 else max(narrow, 16)
    return BoxTiles(block_n=narrow, block_k=min(depth, narrow))


@triton.jit(do_not_specialize=["N", "C", "singles", "cells"])
def box_rows_kernel(
    x_ptr,
    prefix_ptr,
    v_ptr,
    bias_ptr,
    edges_ptr,
    sizes_ptr,
    y_ptr,
    N,
    C,
    singles,
    cells,
    H: tl.constexpr,
    W: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    CHUNKS: tl.constexpr,
    ANCHORED: tl.constexpr,
    DISTANCE: tl.constexpr,
    BASE: tl.constexpr,
    LENGTH: tl.constexpr,
    VECTOR: tl.constexpr,
    VECTOR_BYTES: tl.constexpr,
    PREFIX_VECTOR: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
    UP: tl.constexpr,
    INT64: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Compute a tile of BM rows by BN columns of one channel; grid (row tiles x column tiles x C), channel slowest."""
    COLUMN_TILES: tl.constexpr = (W + BN - 1) // BN
    pid = tl.program_id(0)
    row_tiles = (N * H + BM - 1) // BM
    m = (pid % row_tiles) * BM + tl.arange(0, BM)
    rest = pid // row_tiles
    c = rest // COLUMN_TILES
    j0 = (rest % COLUMN_TILES) * BN
    n = m // H
    i = m - n * H
    if INT64:
        c = c.to(tl.int64)
        n = n.to(tl.int64)
    is_row = n < N
    # Masked-off lanes get addresses within the tensors: hardware may look at them.
    plane = tl.where(is_row, n, 0) * C + c
    i = tl.where(is_row, i, 0)
    kk = tl.arange(0, BK)
    jj = tl.arange(0, BN)
    if ANCHORED:
        distance = -j0
    else:
        distance = DISTANCE
    shift = kk % 8
    taps = (shift * LENGTH + BASE + shift - kk)[:, None] + (jj - distance)[None, :]
    v_ptr += c * (cells * 8 * LENGTH)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for step in range(0, singles * CHUNKS):
        cell = step // CHUNKS
        k = (step - cell * CHUNKS) * BK
        h = i + tl.load(edges_ptr + cell)
        is_inside = is_row & (h >= 0) & (h < H)
        w = j0 + distance + k + kk
        is_column = (w >= 0) & (w < W)
        row = plane * (H * W) + tl.where(is_inside, h, 0) * W
        x_tile = x_ptr + row[:, None] + tl.where(is_column, w, kk % VECTOR)[None, :]
        x_tile = tl.max_contiguous(tl.multiple_of(x_tile, (1, VECTOR_BYTES)), (1, VECTOR))
        a = tl.load(x_tile, mask=is_inside[:, None] & is_column[None, :], other=0.0)
        t_tile = v_ptr + cell * (8 * LENGTH) + (taps - k)
        t_tile = tl.max_contiguous(tl.multiple_of(t_tile, (1, 16)), (1, 8))
        b = tl.load(t_tile)
        if UP:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    for step in range(singles * CHUNKS, cells * CHUNKS):
        cell = step // CHUNKS
        k = (step - cell * CHUNKS) * BK
        # Clamped to the image, the ends of a box are its part that holds pixels: zero padding costs no test.
        top = tl.minimum(tl.maximum(i + tl.load(edges_ptr + cell), 0), H)
        end = tl.minimum(tl.maximum(i + tl.load(edges_ptr + cells + cell), 0), H)
        w = j0 + distance + k + kk
        is_column = (w >= 0) & (w < W)
        column = tl.where(is_column, w, kk % PREFIX_VECTOR)[None, :]
        mask = is_row[:, None] & is_column[None, :]
        base = plane * ((H + 1) * W)
        top_tile = prefix_ptr + (base + top * W)[:, None] + column
        end_tile = prefix_ptr + (base + end * W)[:, None] + column
        top_tile = tl.max_contiguous(tl.multiple_of(top_tile, (1, 4 * PREFIX_VECTOR)), (1, PREFIX_VECTOR))
        end_tile = tl.max_contiguous(tl.multiple_of(end_tile, (1, 4 * PREFIX_VECTOR)), (1, PREFIX_VECTOR))
        box = tl.load(end_tile, mask=mask, other=0.0) - tl.load(top_tile, mask=mask, other=0.0)
        if SCALED:
            box = box / tl.load(sizes_ptr + cell)
        a = box.to(x_ptr.dtype.element_ty)
        t_tile = v_ptr + cell * (8 * LENGTH) + (taps - k)
        t_tile = tl.max_contiguous(tl.multiple_of(t_tile, (1, 16)), (1, 8))
        b = tl.load(t_tile)
        if UP:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + c).to(tl.float32)
    j = j0 + jj
    offsets = (plane * (H * W) + i * W)[:, None] + j[None, :]
    mask = is_row[:, None] & (j < W)[None, :]
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=mask)


def _constants(problem: PeripheralProblem, config: BoxTiles, lanes: int) -> dict[str, object]:
    shape = band(problem.dense(), 1, config.block_n, config.block_k)
    return {
        "H": problem.height,
        "W": problem.width,
        "BM": config.block_m,
        "BN": config.block_n,
        "BK": config.block_k,
        "CHUNKS": shape.chunks,
        "ANCHORED": shape.is_anchored,
        "DISTANCE": shape.distance,
        "BASE": shape.base,
        "LENGTH": shape.length,
        "VECTOR": lanes,
        "VECTOR_BYTES": lanes * problem.dtype.itemsize,
        "PREFIX_VECTOR": math.gcd(problem.width, 4),
        "SCALED": problem.dtype == torch.float16,
    }


def convolve(
    x: Tensor,
    cells: Tensor,
    bias: Tensor | None,
    problem: PeripheralProblem,
    config: BoxTiles | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve.

    Args:
        x: (N, C, H, W), contiguous.
        cells: (C, 1, P_h, P_w).
        bias: (C,) or none.
        problem: What to convolve.
        config: Tiles; without them, those of `tiles`.
        out: Where to write, (N, C, H, W), contiguous; else a new tensor.

    Returns:
        ``F(x, w) + bias``, (N, C, H, W).
    """
    config = tiles(problem) if config is None else config
    out = torch.empty_like(x) if out is None else out
    table = cell_table(problem.rows, x.device)
    lines = cells.index_select(2, table.order)
    if problem.dtype == torch.float16:
        # Sums of many rows overflow where their mean does not: the box gives the mean, the weight takes the size.
        lines = (lines.float() * table.sizes[:, None]).to(lines.dtype)
    dense = problem.dense()
    shape = band(dense, 1, config.block_n, config.block_k)
    expanded = expand(spread(lines, problem.columns.sizes, -1), dense, 1, shape, is_flipped=False)
    prefix = exclusive_prefix(x, -2)
    row_tiles = -(-problem.batch * problem.height // config.block_m)
    grid = (row_tiles * -(-problem.width // config.block_n) * problem.channels,)
    with on_device(x):
        box_rows_kernel[grid](
            x,
            prefix,
            expanded,
            x if bias is None else bias,
            table.edges,
            table.sizes,
            out,
            problem.batch,
            problem.channels,
            table.singles,
            problem.rows.parameters,
            **_constants(problem, config, vector(x, problem.width, 8)),
            PRECISION=precision(x.dtype),
            UP=needs_upcast(x.dtype),
            INT64=needs_int64(x, expanded, prefix),
            HAS_BIAS=bias is not None,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=True,
        )
    return out


def compile_case(problem: PeripheralProblem, config: BoxTiles) -> CompileCase:
    """Return the compile that `convolve` asks for, with tensors on 16 bytes."""
    element, lanes = TYPE_NAMES[problem.dtype], math.gcd(problem.width, 16 // problem.dtype.itemsize)
    pointers = dict.fromkeys(("x_ptr", "v_ptr", "bias_ptr", "y_ptr"), f"*{element}")
    pointers |= {"prefix_ptr": "*fp32", "edges_ptr": "*i32", "sizes_ptr": "*fp32"}
    order = ("x_ptr", "prefix_ptr", "v_ptr", "bias_ptr", "edges_ptr", "sizes_ptr", "y_ptr")
    kernel = "x".join(map(str, problem.kernel_size))
    shape = f"{problem.height}x{problem.width} k{kernel} p{problem.rows.parameters}"
    blocks = f"{config.block_m}x{config.block_n}x{config.block_k} w{config.num_warps} s{config.num_stages}"
    return CompileCase(
        name=f"box_rows {shape} {element} {blocks}",
        kernel=box_rows_kernel,
        signature={name: pointers[name] for name in order} | dict.fromkeys(("N", "C", "singles", "cells"), "i32"),
        constexprs=_constants(problem, config, lanes)
        | {
            "PRECISION": fp32_mode() if problem.dtype == torch.float32 else "tf32",
            "UP": False,
            "INT64": False,
            "HAS_BIAS": True,
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
