"""What the kernels read of a grid, and the prefix sums they take box sums from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.peripheral_kernel.grid import SharingGrid


@dataclass(frozen=True, kw_only=True)
class CellTable:
    """The cells of an axis, those of one tap first: they need no prefix sums."""

    order: Tensor
    """Which cell of the grid stands at each place (P,), int64."""
    edges: Tensor
    """First offset from the central tap, and that behind the last, of each (2, P), int32."""
    sizes: Tensor
    """Taps of each (P,), float32."""
    singles: int
    """How many have one tap."""


@lru_cache(maxsize=64)
def cell_table(grid: SharingGrid, device: torch.device) -> CellTable:
    """Return the table on `device`, kept for the next call: a later launch copies nothing from the host."""
    order = sorted(range(grid.parameters), key=lambda cell: grid.sizes[cell] > 1)
    half, bounds = grid.kernel_size // 2, grid.bounds
    edges = [[bounds[cell + end] - half for cell in order] for end in (0, 1)]
    with torch.inference_mode(False):
        return CellTable(
            order=torch.tensor(order, device=device),
            edges=torch.tensor(edges, dtype=torch.int32, device=device),
            sizes=torch.tensor([grid.sizes[cell] for cell in order], dtype=torch.float32, device=device),
            singles=sum(size == 1 for size in grid.sizes),
        )


def exclusive_prefix(x: Tensor, dim: int) -> Tensor:
    """Return sums of all pixels before each along `dim` (-1 or -2), n + 1 of them, in float32."""
    total = x.cumsum(dim, dtype=torch.float32)
    return F.pad(total, (1, 0) if dim == -1 else (0, 0, 1, 0))
