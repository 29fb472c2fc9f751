"""Transforms by torch.fft, row and column passes apart, so that rows known to be zero or not needed cost little."""

# torch.fft is untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from widefield.ops.depthwise_conv.fft.placement import CellPlaces, Placement, Places
from widefield.ops.depthwise_conv.fft.waves import complex_analysis, complex_synthesis

_COST_OF_FACTOR = {2: 1.0, 3: 2.2, 5: 4.2, 7: 4.0}


@lru_cache(maxsize=4096)
def fast_size(least: int) -> int:
    """Return the size of at least `least` that torch.fft transforms fastest: even, with prime factors up to 7."""
    if least <= 1:
        return 1
    costs = {n: _cost(n) for n in range(least + least % 2, 2 * least + 3, 2)}
    return min((n for n, cost in costs.items() if cost > 0), key=lambda n: (costs[n], n))


@lru_cache(maxsize=4096)
def _cost(n: int) -> float:
    """Return the relative cost of a transform of n points, 0 if n has a prime factor above 7."""
    total, rest = 0.0, n
    for factor, cost in _COST_OF_FACTOR.items():
        while rest % factor == 0:
            rest //= factor
            total += cost
    return n * (4.0 + total) if rest == 1 else 0.0


class LibraryTransform:
    """Real two-dimensional transforms of size (S_h, S_w).

    A spectrum is complex, (..., S_w // 2 + 1, S_h): the pass along the columns, which is the longer one, finds them
    contiguous. One instance serves one call: it keeps the padded planes, whose zeros are written once.
    """

    def __init__(self, least: tuple[int, int], dtype: torch.dtype) -> None:
        self.size = fast_size(least[0]), fast_size(least[1])
        self.shape = self.size[1] // 2 + 1, self.size[0]
        self.dtype = dtype
        self.complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        self._padded: dict[tuple[object, ...], Tensor] = {}

    def analyse(self, x: Tensor, places: Places | CellPlaces, *, conj: bool = False) -> Tensor:
        """Return the spectra of planes (..., H, W) placed on the circle, conjugated on request."""
        if isinstance(places, CellPlaces):
            return self._analyse_cells(x, places, conj)
        rows, columns = places
        height, width = self.size
        if columns.count != width or columns.start or x.dtype != self.dtype:
            along_rows = self._zeros((places, x.shape), (*x.shape[:-1], width), self.dtype)
            for samples, where in columns.pieces(width):
                along_rows[..., where] = x[..., samples]
            x = along_rows
        spectrum = (torch.fft.rfft(x) if width > 1 else x.to(self.complex_dtype)).mT
        if height > 1:
            padded = self._zeros((places, spectrum.shape), (*spectrum.shape[:-2], *self.shape), self.complex_dtype)
            for samples, where in rows.pieces(height):
                padded[..., where] = spectrum[..., samples]
            spectrum = torch.fft.fft(padded)
        return spectrum.conj_physical_() if conj else spectrum

    def synthesise(self, spectrum: Tensor, places: Places | CellPlaces) -> Tensor:
        """Return the planes (..., H, W) found at the places on the circle, summed over each cell."""
        if isinstance(places, CellPlaces):
            return self._synthesise_cells(spectrum, places)
        rows, columns = places
        if self.size[0] > 1:
            spectrum = _gathered(torch.fft.ifft(spectrum), rows, self.size[0])
        y = torch.fft.irfft(spectrum.mT, n=self.size[1]) if self.size[1] > 1 else spectrum.mT.real
        return _gathered(y, columns, self.size[1])

    def multiply(self, x: Tensor, other: Tensor) -> Tensor:
        """Return the product of two spectra; overwrites x."""
        return x.mul_(other)

    # Both are small matrix products, complex throughout: no setting of torch lowers the precision of those.

    def _analyse_cells(self, cells: Tensor, places: CellPlaces, conj: bool) -> Tensor:
        along_rows = complex_analysis(self.size[1], places.columns, True, conj, self.complex_dtype)
        along_columns = complex_analysis(self.size[0], places.rows, False, conj, self.complex_dtype)
        return (cells.to(self.complex_dtype) @ along_rows).mT @ along_columns

    def _synthesise_cells(self, spectrum: Tensor, places: CellPlaces) -> Tensor:
        along_rows = complex_synthesis(self.size[1], places.columns, True, self.complex_dtype)
        along_columns = complex_synthesis(self.size[0], places.rows, False, self.complex_dtype)
        return ((spectrum @ along_columns).mT @ along_rows).real

    def _zeros(self, key: tuple[object, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        full_key = (*key, dtype)
        if full_key not in self._padded:
            self._padded[full_key] = torch.zeros(shape, dtype=dtype, device="cpu")
        return self._padded[full_key]


def _gathered(x: Tensor, placement: Placement, size: int) -> Tensor:
    parts = [x[..., where] for _, where in placement.pieces(size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
