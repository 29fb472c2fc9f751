"""Summation by parts on both axes: (P_h + 1) (P_w + 1) multiplications for an output, whatever the kernel size.

With S the summed-area table, a rectangle's sum is a difference of its four corners, so
``y[i, j] = sum over k, l of D[k, l] S[i + t_k, j + u_l]``, where t and u are the grids' bounds and D the second
difference of the cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.peripheral_conv.box_sums import box_sums, chunk_length, extended_prefix
from widefield.ops.peripheral_conv.form import Map, flipped
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_kernel.grid import SharingGrid


class SummedAreaForm:
    """Sums of the table's shifted copies in float32 or float64, the mean of each plane taken off before."""

    name = "summed_area"
    summary = "summation by parts: second differences of the cells on a summed-area table"

    def refusals(self, problem: PeripheralProblem, map_: Map) -> list[str]:
        """It runs every problem."""
        return []

    def forward(self, x: Tensor, cells: Tensor, bias: Tensor | None, problem: PeripheralProblem) -> Tensor:
        """Multiply the second differences with the table's rows, then add the columns' shifts up."""
        dtype = problem.wide_dtype
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        weights = cells[:, 0].to(dtype)
        corners = F.pad(weights, (1, 1, 1, 1)).diff(dim=-1).diff(dim=-2)
        for part in _chunks(problem):
            images = x[:, part].transpose(0, 1).to(dtype)
            # A table grows with the plane's sum, and its differences lose as many digits: what is constant goes apart.
            mean = images.mean((-2, -1), keepdim=True)
            y = _weighted_corners(images - mean, corners[part], problem)
            y += mean * _ones_convolved(weights[part], problem)[:, None]
            if bias is not None:
                y += bias[part, None, None, None]
            out[:, part] = y.transpose(0, 1)
        return out

    def grad_input(self, grad: Tensor, cells: Tensor, problem: PeripheralProblem) -> Tensor:
        """Run the forward map of the flipped kernel."""
        return self.forward(grad, flipped(cells), None, problem.transposed())

    def grad_cells(self, grad: Tensor, x: Tensor, problem: PeripheralProblem) -> Tensor:
        """Multiply the column boxes of the input with the row boxes of the gradient: P_h x P_w products a pixel.

        ``G_w[a, b] = sum over pixels of (sum of g[i - d, j] over d in a) (sum of x[i, j + e] over e in b)``.
        """
        dtype, rows, columns = problem.wide_dtype, problem.rows, problem.columns
        out = torch.empty((x.shape[1], 1, rows.parameters, columns.parameters), dtype=dtype, device=x.device)
        for part in _chunks(problem):
            # Offsets of the gradient run the other way, and so do its cells.
            left = _boxes(grad[:, part], rows.reversed(), -2, dtype).flip(0)
            right = _boxes(x[:, part], columns, -1, dtype)
            out[part, 0] = torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0))
        return out


def _chunks(problem: PeripheralProblem) -> list[slice]:
    pixels = problem.batch * problem.height * (problem.width + 1)
    cells = problem.rows.parameters + problem.columns.parameters + 2
    step = chunk_length(problem.channels, problem.wide_dtype.itemsize * cells * pixels)
    return [slice(start, start + step) for start in range(0, problem.channels, step)]


def _boxes(x: Tensor, grid: SharingGrid, dim: int, dtype: torch.dtype) -> Tensor:
    images = x.transpose(0, 1).to(dtype).contiguous()
    boxes = torch.empty((grid.parameters, *images.shape), dtype=dtype, device=x.device)
    return box_sums(images, grid, dim, boxes).flatten(2)


def _weighted_corners(images: Tensor, corners: Tensor, problem: PeripheralProblem) -> Tensor:
    """Return the convolution of images (C, N, H, W) with the kernel of second differences (C, P_h + 1, P_w + 1)."""
    channels, batch, height, width = images.shape
    edges, margins = (problem.rows.bounds, problem.columns.bounds), (problem.rows.kernel_size // 2, 0)
    table = extended_prefix(extended_prefix(images, margins[0], -2), margins[1], -1)
    size = (channels, len(edges[0]), batch, height, width + 1)
    lines = torch.empty(size, dtype=images.dtype, device=images.device)
    for k, edge in enumerate(edges[0]):
        lines[:, k] = table.narrow(-2, edge, height)
    sums = torch.bmm(corners.mT, lines.flatten(2)).reshape(channels, len(edges[1]), batch, height, width + 1)
    y = torch.zeros_like(images, memory_format=torch.contiguous_format)
    half = problem.columns.kernel_size // 2
    for column, edge in enumerate(edges[1]):
        shift = edge - half
        # Output j reads table column j + shift: 0 before the table, its last column behind it.
        first, last = max(0, -shift), max(0, min(width, width - shift))
        if first < last:
            y[..., first:last] += sums[:, column, ..., first + shift : last + shift]
        y[..., last:] += sums[:, column, ..., width:]
    return y


def _ones_convolved(weights: Tensor, problem: PeripheralProblem) -> Tensor:
    """Return the convolution of an image of ones (C, H, W): how much of each cell lies on the image, weighed."""
    ones = weights.new_ones
    rows = _boxes(ones(1, 1, problem.height, 1), problem.rows, -2, weights.dtype)[:, 0]
    columns = _boxes(ones(1, 1, 1, problem.width), problem.columns, -1, weights.dtype)[:, 0]
    return rows.T @ (weights @ columns)
