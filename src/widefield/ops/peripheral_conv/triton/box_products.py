"""The gradient of the cells as one small product: row boxes of the gradient with column boxes of the input.

``G_w[a, b] = sum over pixels of (sum of g[i - d, j] over d in a) (sum of x[i, j + e] over e in b)``: P_h P_w products a
pixel, whatever the kernel size, with both boxes from prefix sums in float32.
"""

# Kernel bodies are Triton's language, not Python's.
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# ruff: noqa: N803, N806

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from widefield.ops.depthwise_conv.triton.launch import needs_int64, on_device, precision
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, fp32_mode
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_conv.triton.tables import cell_table, exclusive_prefix

PROGRAMS = 1024
"""How many programs a launch should have: the batch is split until there are."""


@triton.jit(do_not_specialize=["N", "C", "splits", "row_cells", "column_cells"])
def box_products_kernel(
    g_prefix_ptr,
    x_prefix_ptr,
    row_edges_ptr,
    column_edges_ptr,
    partial_ptr,
    N,
    C,
    splits,
    row_cells,
    column_cells,
    H: tl.constexpr,
    W: tl.constexpr,
    BA: tl.constexpr,
    BB: tl.constexpr,
    BP: tl.constexpr,
    PRECISION: tl.constexpr,
    INT64: tl.constexpr,
):
    """Sum the products over the pixels of every `splits`-th image of a channel; grid (splits x C), channel slowest."""
    COLUMN_TILES: tl.constexpr = (W + BP - 1) // BP
    pid = tl.program_id(0)
    c = pid // splits
    split = pid % splits
    a = tl.arange(0, BA)
    b = tl.arange(0, BB)
    p = tl.arange(0, BP)
    is_a = a < row_cells
    is_b = b < column_cells
    row_start = tl.load(row_edges_ptr + a, mask=is_a, other=0)
    row_end = tl.load(row_edges_ptr + row_cells + a, mask=is_a, other=0)
    column_start = tl.load(column_edges_ptr + b, mask=is_b, other=0)
    column_end = tl.load(column_edges_ptr + column_cells + b, mask=is_b, other=0)
    acc = tl.zeros((BB, BA), dtype=tl.float32)
    images = (N - split + splits - 1) // splits
    for step in range(0, images * (H * COLUMN_TILES)):
        image = step // (H * COLUMN_TILES)
        rest = step - image * (H * COLUMN_TILES)
        i = rest // COLUMN_TILES
        j = (rest - i * COLUMN_TILES) * BP + p
        n = split + image * splits
        if INT64:
            n = n.to(tl.int64)
        plane = n * C + c
        is_pixel = j < W
        # Offsets of a cell's taps run the other way in the gradient: rows i - end + 1 to i - start.
        top = tl.minimum(tl.maximum(i + 1 - row_end, 0), H)
        end = tl.minimum(tl.maximum(i + 1 - row_start, 0), H)
        g_row = g_prefix_ptr + plane * ((H + 1) * W)
        column = tl.where(is_pixel, j, 0)[:, None]
        g_mask = is_pixel[:, None] & is_a[None, :]
        below = tl.load(g_row + (end * W)[None, :] + column, mask=g_mask, other=0.0)
        above = tl.load(g_row + (top * W)[None, :] + column, mask=g_mask, other=0.0)
        first = tl.minimum(tl.maximum(j[None, :] + column_start[:, None], 0), W)
        last = tl.minimum(tl.maximum(j[None, :] + column_end[:, None], 0), W)
        x_row = x_prefix_ptr + plane * (H * (W + 1)) + i * (W + 1)
        x_mask = is_b[:, None] & is_pixel[None, :]
        right = tl.load(x_row + last, mask=x_mask, other=0.0)
        left = tl.load(x_row + first, mask=x_mask, other=0.0)
        acc = tl.dot(right - left, below - above, acc, input_precision=PRECISION)
    out = (split * C + c) * (row_cells * column_cells) + a[None, :] * column_cells + b[:, None]
    tl.store(partial_ptr + out, acc, mask=is_b[:, None] & is_a[None, :])


def _constants(problem: PeripheralProblem) -> dict[str, object]:
    # Three products for each of float32 fill the registers at half the length.
    longest = 32 if problem.dtype == torch.float32 else 64
    return {
        "H": problem.height,
        "W": problem.width,
        "BA": max(16, triton.next_power_of_2(problem.rows.parameters)),
        "BB": max(16, triton.next_power_of_2(problem.columns.parameters)),
        "BP": min(longest, max(16, triton.next_power_of_2(problem.width))),
    }


def split_count(problem: PeripheralProblem) -> int:
    """Return into how many parts the batch is cut."""
    return max(1, min(problem.batch, -(-PROGRAMS // problem.channels)))


def multiply(grad: Tensor, x: Tensor, problem: PeripheralProblem, *, partial: Tensor | None = None) -> Tensor:
    """Return the gradient of the cells, the same at every run: partial sums are added in a fixed order.

    Args:
        grad: Gradient of the output (N, C, H, W), contiguous.
        x: (N, C, H, W), contiguous.
        problem: What was convolved.
        partial: Where partial sums go, (`split_count`, C, P_h, P_w) in float32; else a new tensor.

    Returns:
        (C, 1, P_h, P_w), float32.
    """
    rows, columns = cell_table(problem.rows, x.device), cell_table(problem.columns, x.device)
    splits = split_count(problem)
    counts = (problem.rows.parameters, problem.columns.parameters)
    if partial is None:
        partial = torch.empty((splits, problem.channels, *counts), dtype=torch.float32, device=x.device)
    g_prefix, x_prefix = exclusive_prefix(grad, -2), exclusive_prefix(x, -1)
    with on_device(x):
        box_products_kernel[(splits * problem.channels,)](
            g_prefix,
            x_prefix,
            rows.edges,
            columns.edges,
            partial,
            problem.batch,
            problem.channels,
            splits,
            *counts,
            **_constants(problem),
            PRECISION=precision(x.dtype),
            INT64=needs_int64(g_prefix, x_prefix),
            num_warps=4,
            num_stages=2,
            enable_fp_fusion=True,
        )
    ordered = partial.sum(0).index_select(1, rows.order.argsort()).index_select(2, columns.order.argsort())
    return ordered.unsqueeze(1)


def compile_case(problem: PeripheralProblem) -> CompileCase:
    """Return the compile that `multiply` asks for, with tensors on 16 bytes."""
    pointers = ("g_prefix_ptr", "x_prefix_ptr", "row_edges_ptr", "column_edges_ptr", "partial_ptr")
    kernel = "x".join(map(str, problem.kernel_size))
    cells = f"p{problem.rows.parameters}x{problem.columns.parameters}"
    return CompileCase(
        name=f"box_products {problem.height}x{problem.width} k{kernel} {cells} {str(problem.dtype)[6:]} w4 s2",
        kernel=box_products_kernel,
        signature={name: "*i32" if "edges" in name else "*fp32" for name in pointers}
        | dict.fromkeys(("N", "C", "splits", "row_cells", "column_cells"), "i32"),
        constexprs=_constants(problem)
        | {"PRECISION": fp32_mode() if problem.dtype == torch.float32 else "tf32", "INT64": False},
        num_warps=4,
        num_stages=2,
    )
