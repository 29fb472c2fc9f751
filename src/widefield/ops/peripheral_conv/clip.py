"""Cells that never meet a pixel: a kernel wider than twice its map can be cut to that, exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from widefield.ops.peripheral_conv.problem import PeripheralProblem


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The block of cells that meets the image, within all cells."""

    first: tuple[int, int]
    counts: tuple[int, int]
    total: tuple[int, int]

    def select(self, cells: Tensor) -> Tensor:
        """Return the block of `cells` (C, 1, P_h, P_w)."""
        (top, left), (rows, columns) = self.first, self.counts
        return cells[..., top : top + rows, left : left + columns]

    def embed(self, block: Tensor) -> Tensor:
        """Return all cells, zero outside the block: the adjoint of `select`."""
        (top, left), (rows, columns) = self.first, self.counts
        pads = (left, self.total[1] - left - columns, top, self.total[0] - top - rows)
        return F.pad(block, pads)


def clip(problem: PeripheralProblem) -> tuple[PeripheralProblem, Kept]:
    """Return the problem cut to (2 H - 1) x (2 W - 1) taps, and which cells stay (some of them smaller)."""
    rows, top = problem.rows.cropped(_dead_taps(problem.rows.kernel_size, problem.height))
    columns, left = problem.columns.cropped(_dead_taps(problem.columns.kernel_size, problem.width))
    kept = Kept(
        first=(top, left),
        counts=(rows.parameters, columns.parameters),
        total=(problem.rows.parameters, problem.columns.parameters),
    )
    return replace(problem, rows=rows, columns=columns), kept


def _dead_taps(kernel: int, size: int) -> int:
    return max(0, kernel // 2 - max(size - 1, 0))
