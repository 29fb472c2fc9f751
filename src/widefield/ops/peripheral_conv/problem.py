"""The static description of one peripheral convolution: all that a form may base its choice on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from widefield.ops.depthwise_conv.problem import Layout, Problem
from widefield.ops.peripheral_kernel.grid import SharingGrid


@dataclass(frozen=True, kw_only=True)
class PeripheralProblem:
    """Shape, grids, type and place of a peripheral convolution with stride 1 and "same" padding.

    `layout` is that of the tensor a map reads as an image: the input for ``forward`` and ``grad_cells``, the output's
    gradient for ``grad_input``.
    """

    batch: int
    channels: int
    height: int
    width: int
    rows: SharingGrid
    columns: SharingGrid
    dtype: torch.dtype = torch.float32
    device_type: str = "cpu"
    layout: Layout = "contiguous"

    @property
    def kernel_size(self) -> tuple[int, int]:
        """(K_h, K_w), taps of the expanded kernel."""
        return self.rows.kernel_size, self.columns.kernel_size

    @property
    def wide_dtype(self) -> torch.dtype:
        """What sums are kept in: float32, or float64 for float64."""
        return torch.promote_types(self.dtype, torch.float32)

    def transposed(self) -> PeripheralProblem:
        """Return the problem whose forward is this one's ``grad_input``: the kernel is flipped on both axes."""
        return replace(self, rows=self.rows.reversed(), columns=self.columns.reversed())

    def dense(self) -> Problem:
        """Return the depthwise convolution with the expanded kernel."""
        rows, columns = self.kernel_size
        return Problem(
            batch=self.batch,
            channels=self.channels,
            height=self.height,
            width=self.width,
            kernel_size=(rows, columns),
            padding=(rows // 2, columns // 2),
            dtype=self.dtype,
            device_type=self.device_type,
            layout=self.layout,
        )

    def __str__(self) -> str:
        cells = f"{self.rows.parameters}x{self.columns.parameters}"
        return str(self.dense()).replace("depthwise", f"peripheral {cells} cells,", 1)
