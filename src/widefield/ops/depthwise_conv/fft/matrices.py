"""Transforms as matrix products: on small maps a matrix product beats the butterflies of an FFT.

The transform along the columns of a plane is kept as cosine and sine sums A and B, for a spectrum ``A - jB`` whose j is
a second imaginary unit beside the i of the rows. Half of the products of a complex transform are so avoided, any size
is as good as any other, and zeros are never multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from widefield.ops.depthwise_conv.fft.placement import CellPlaces, Places
from widefield.ops.depthwise_conv.fft.waves import column_analysis, column_synthesis, row_analysis, row_synthesis


class MatrixTransform:
    """Transforms of size (S_h, S_w); a spectrum is complex, (..., 2 (S_h // 2 + 1), S_w // 2 + 1), A above B."""

    def __init__(self, least: tuple[int, int], dtype: torch.dtype) -> None:
        self.size = least
        self.shape = 2 * (least[0] // 2 + 1), least[1] // 2 + 1
        self.dtype = dtype
        self.complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def analyse(self, x: Tensor, places: Places | CellPlaces, *, conj: bool = False) -> Tensor:
        """Return the spectra of planes (..., H, W) placed on the circle, conjugated in i and j on request."""
        rows, columns = places
        along_rows = row_analysis(self.size[1], columns, conj, self.dtype)
        along_columns = column_analysis(self.size[0], rows, conj, self.dtype)
        half = torch.mm(x.to(self.dtype).reshape(-1, columns.count), along_rows).view(-1, rows.count, 2 * self.shape[1])
        return torch.view_as_complex(torch.matmul(along_columns, half).view(*x.shape[:-2], *self.shape, 2))

    def synthesise(self, spectrum: Tensor, places: Places | CellPlaces) -> Tensor:
        """Return the planes (..., H, W) found at the places on the circle, summed over each cell."""
        rows, columns = places
        along_rows = row_synthesis(self.size[1], columns, self.dtype)
        along_columns = column_synthesis(self.size[0], rows, self.dtype)
        parts = torch.view_as_real(spectrum).view(-1, self.shape[0], 2 * self.shape[1])
        half = torch.matmul(along_columns, parts).view(-1, 2 * self.shape[1])
        return torch.mm(half, along_rows).view(*spectrum.shape[:-2], rows.count, columns.count)

    def multiply(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the product of two spectra."""
        half = self.shape[0] // 2
        out = torch.empty_like(x)
        a, b, c, d = x[..., :half, :], x[..., half:, :], other[..., :half, :], other[..., half:, :]
        torch.mul(a, c, out=out[..., :half, :]).addcmul_(b, d, value=-1)
        torch.mul(a, d, out=out[..., half:, :]).addcmul_(b, c)
        return out
