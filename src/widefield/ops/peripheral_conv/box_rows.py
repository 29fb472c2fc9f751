"""Vertical box sums, then P_h row convolutions instead of K_h, all of them as one product with a Toeplitz matrix.

``y[i, :] = sum over a of B_a[i, :] T_a``, where ``B_a[i, j] = sum over the taps d of row cell a of x[i + d, j]`` and
T_a is the W x W Toeplitz matrix of the cells' row a, expanded along its columns only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.peripheral_conv.box_sums import box_sums, chunk_length
from widefield.ops.peripheral_conv.form import Map, flipped
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_kernel.expansion import membership, spread


class BoxRowsForm:
    """Matrix products of (N H) x (P_h W) with (P_h W) x W for each channel, in float32 or float64."""

    name = "box_rows"
    summary = "vertical box sums, then a matrix product along the rows"

    def refusals(self, problem: PeripheralProblem, map_: Map) -> list[str]:
        """It runs every problem."""
        return []

    def forward(self, x: Tensor, cells: Tensor, bias: Tensor | None, problem: PeripheralProblem) -> Tensor:
        """Multiply the box sums with the Toeplitz matrices."""
        batch, _, height, width = x.shape
        out = torch.empty(x.shape, dtype=problem.wide_dtype, device=x.device)
        kernel = spread(cells.to(problem.wide_dtype), problem.columns.sizes, -1)[:, 0]
        # One zero behind the taps stands for everything outside them.
        taps, index = F.pad(kernel, (0, 1)), _tap_index(problem, x.device)
        for part in _chunks(problem):
            boxes = _boxes(x[:, part], problem)
            toeplitz = taps[part].index_select(-1, index).reshape(boxes.shape[0], -1, width)
            y = torch.bmm(boxes, toeplitz).reshape(-1, batch, height, width).transpose(0, 1)
            if bias is None:
                out[:, part] = y
            else:
                torch.add(y, bias[part, None, None], out=out[:, part])
        return out

    def grad_input(self, grad: Tensor, cells: Tensor, problem: PeripheralProblem) -> Tensor:
        """Run the forward map of the flipped kernel."""
        return self.forward(grad, flipped(cells), None, problem.transposed())

    def grad_cells(self, grad: Tensor, x: Tensor, problem: PeripheralProblem) -> Tensor:
        """Take the gradient of the Toeplitz matrices, then sum the diagonals of every cell."""
        channels, width = x.shape[1], x.shape[3]
        out = torch.empty((channels, 1, *_counts(problem)), dtype=problem.wide_dtype, device=x.device)
        inside = F.pad(membership(problem.columns.sizes, out), (0, 0, 0, 1))
        diagonals = inside.index_select(0, _tap_index(problem, x.device))
        for part in _chunks(problem):
            boxes = _boxes(x[:, part], problem)
            rows = _by_channel(grad[:, part], problem.wide_dtype).reshape(boxes.shape[0], -1, width)
            toeplitz = torch.bmm(boxes.mT, rows).reshape(-1, problem.rows.parameters, width * width)
            out[part, 0] = toeplitz @ diagonals
        return out


def _counts(problem: PeripheralProblem) -> tuple[int, int]:
    return problem.rows.parameters, problem.columns.parameters


def _chunks(problem: PeripheralProblem) -> list[slice]:
    pixels = problem.batch * problem.height * problem.width
    matrix = problem.width * problem.width
    bytes_each = problem.wide_dtype.itemsize * problem.rows.parameters * (pixels + matrix)
    step = chunk_length(problem.channels, bytes_each)
    return [slice(start, start + step) for start in range(0, problem.channels, step)]


def _by_channel(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.transpose(0, 1).to(dtype).contiguous()


def _boxes(x: Tensor, problem: PeripheralProblem) -> Tensor:
    images = _by_channel(x, problem.wide_dtype)
    channels, batch, height, width = images.shape
    cells = problem.rows.parameters
    boxes = torch.empty((channels, batch, height, cells, width), dtype=images.dtype, device=images.device)
    box_sums(images, problem.rows, -2, boxes.movedim(3, 0))
    return boxes.reshape(channels, batch * height, cells * width)


def _tap_index(problem: PeripheralProblem, device: torch.device) -> Tensor:
    """Return for every (input column, output column) the tap that joins them, or K_w where none does: (W W,)."""
    taps = problem.columns.kernel_size
    column = torch.arange(problem.width, device=device)
    tap = column[:, None] - column + taps // 2
    return tap.where((tap >= 0) & (tap < taps), taps).flatten()
