"""From one parameter for each cell to one for each tap, and its adjoint: each is the derivative of the other."""

# Autograd functions leave the types of contexts and arguments open.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from widefield._core.checks import check
from widefield.ops.functions import apply
from widefield.ops.operands import check_dense, not_scriptable
from widefield.ops.peripheral_kernel.grid import SharingGrid
from widefield.ops.precision import as_written

Sizes = tuple[int, ...]


@not_scriptable
def peripheral_kernel(cells: Tensor, rows: SharingGrid, columns: SharingGrid | None = None) -> Tensor:
    """Give every tap the value of its cell (PeLK, equation 1). Exact, in every dtype.

    Args:
        cells: Free parameters (C, 1, P_h, P_w).
        rows: Cells of the vertical axis, P_h of them.
        columns: Cells of the horizontal axis, P_w of them; without it, those of `rows`.

    Returns:
        The kernel (C, 1, K_h, K_w).

    Raises:
        InputError: If the parameters do not fit the grids.
    """
    columns = rows if columns is None else columns
    counts = (rows.parameters, columns.parameters)
    _check_fits(cells, counts, "parameters (C, 1, P_h, P_w)", "cells")
    return apply(_Expand, cells, rows.sizes, columns.sizes)


@not_scriptable
def sum_cells(kernel: Tensor, rows: SharingGrid, columns: SharingGrid | None = None) -> Tensor:
    """Sum the taps of every cell: the adjoint of `peripheral_kernel`. Half precision is summed in float32.

    Args:
        kernel: A dense kernel, or its gradient (C, 1, K_h, K_w).
        rows: Cells of the vertical axis.
        columns: Cells of the horizontal axis; without it, those of `rows`.

    Returns:
        The sums (C, 1, P_h, P_w).

    Raises:
        InputError: If the kernel does not fit the grids.
    """
    columns = rows if columns is None else columns
    _check_fits(kernel, (rows.kernel_size, columns.kernel_size), "a kernel (C, 1, K_h, K_w)", "taps")
    return apply(_Sum, kernel, rows.sizes, columns.sizes)


def _check_fits(tensor: Tensor, counts: tuple[int, int], what: str, unit: str) -> None:
    check_dense(tensor)
    check(
        tensor.dim() == 4 and tensor.shape[1] == 1 and tuple(tensor.shape[2:]) == counts,
        f"{what} for grids of {counts[0]} x {counts[1]} {unit}",
        f"shape {tuple(tensor.shape)}",
        "give both the same sizes",
    )


def spread(tensor: Tensor, sizes: Sizes, dim: int) -> Tensor:
    """Repeat slice a of dimension `dim` ``sizes[a]`` times.

    Views and one copy: nothing is moved from the host, so a CUDA graph can capture it, and nothing is multiplied, so
    the values stay as they are.
    """
    shape = list(tensor.shape)
    pieces: list[Tensor] = []
    for place, size in enumerate(sizes):
        shape[dim] = size
        pieces.append(tensor.narrow(dim, place, 1).expand(shape))
    return torch.cat(pieces, dim)


def membership(sizes: Sizes, like: Tensor) -> Tensor:
    """Return the matrix (K, P) that is 1 where tap k lies in cell p, and 0 elsewhere."""
    return spread(torch.eye(len(sizes), dtype=like.dtype, device=like.device), sizes, 0)


class _Expand(Function):
    @staticmethod
    def forward(cells: Tensor, rows: Sizes, columns: Sizes) -> Tensor:
        return spread(spread(cells, columns, -1), rows, -2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.rows, ctx.columns = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return apply(_Sum, grad, ctx.rows, ctx.columns), None, None

    @staticmethod
    def push(ctx: Any, tangent: Tensor, *rest: Any) -> Tensor:
        return apply(_Expand, tangent, ctx.rows, ctx.columns)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], cells: Tensor, rows: Sizes, columns: Sizes) -> tuple[Tensor, int]:
        return apply(_Expand, cells.movedim(in_dims[0], 0), rows, columns), 0


class _Sum(Function):
    @staticmethod
    def forward(kernel: Tensor, rows: Sizes, columns: Sizes) -> Tensor:
        # As products with 0 and 1 the sums are two launches, and the same at every run.
        wide = kernel.to(torch.promote_types(kernel.dtype, torch.float32))
        with as_written(kernel.device.type):
            return (membership(rows, wide).T @ (wide @ membership(columns, wide))).to(kernel.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.rows, ctx.columns = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return apply(_Expand, grad, ctx.rows, ctx.columns), None, None

    @staticmethod
    def push(ctx: Any, tangent: Tensor, *rest: Any) -> Tensor:
        return apply(_Sum, tangent, ctx.rows, ctx.columns)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], kernel: Tensor, rows: Sizes, columns: Sizes) -> tuple[Tensor, int]:
        return apply(_Sum, kernel.movedim(in_dims[0], 0), rows, columns), 0
