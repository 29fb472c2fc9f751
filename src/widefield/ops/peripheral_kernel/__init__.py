"""Kernels that share one parameter over a rectangle of taps, the finer the nearer to the centre."""

from widefield.ops.peripheral_kernel.expansion import peripheral_kernel as peripheral_kernel
from widefield.ops.peripheral_kernel.expansion import sum_cells as sum_cells
from widefield.ops.peripheral_kernel.grid import SharingGrid as SharingGrid
