"""Cosines and sines at given places, as the matrices that transform along one axis; summed over cells where asked.

The matrices of `row_analysis` and `row_synthesis` hold real and imaginary parts in turn, as a complex tensor viewed as
real does; those of `column_analysis` and `column_synthesis` all cosines, then all sines. All are kept for the next
call: do not write to them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from widefield.ops.depthwise_conv.fft.placement import Cells, Placement

Axis = Placement | Cells


@lru_cache(maxsize=512)
def row_analysis(size: int, places: Axis, conj: bool, dtype: torch.dtype) -> Tensor:
    """Return ``exp(-2 pi i f u / S)`` for places u and f = 0 .. S // 2: (count, 2 (S // 2 + 1)), real."""
    with torch.inference_mode(False):
        cosines, sines = (wave.T for wave in _waves(size, places, size // 2 + 1))
        return torch.stack((cosines, sines if conj else -sines), -1).reshape(places.count, -1).to(dtype)


@lru_cache(maxsize=512)
def row_synthesis(size: int, places: Axis, dtype: torch.dtype) -> Tensor:
    """Return the inverse of `row_analysis` for the spectra of real signals: (2 (S // 2 + 1), count), real."""
    with torch.inference_mode(False):
        shares = _shares(size)[:, None]
        cosines, sines = (wave * shares for wave in _waves(size, places, size // 2 + 1))
        return torch.stack((cosines, -sines), 1).reshape(-1, places.count).to(dtype)


@lru_cache(maxsize=512)
def column_analysis(size: int, places: Axis, conj: bool, dtype: torch.dtype) -> Tensor:
    """Return the cosine and sine sums A and B of a spectrum ``A - jB``: (2 (S // 2 + 1), count), real."""
    with torch.inference_mode(False):
        cosines, sines = _waves(size, places, size // 2 + 1)
        return torch.cat((cosines, -sines if conj else sines)).to(dtype)


@lru_cache(maxsize=512)
def column_synthesis(size: int, places: Axis, dtype: torch.dtype) -> Tensor:
    """Return the inverse of `column_analysis`: (count, 2 (S // 2 + 1)), real."""
    with torch.inference_mode(False):
        shares = _shares(size)
        return torch.cat([wave.T * shares for wave in _waves(size, places, size // 2 + 1)], 1).contiguous().to(dtype)


@lru_cache(maxsize=512)
def complex_analysis(size: int, places: Axis, is_half: bool, conj: bool, dtype: torch.dtype) -> Tensor:
    """Return ``exp(-2 pi i f u / S)`` for places u and all f, or f = 0 .. S // 2: (count, S or S // 2 + 1), complex."""
    with torch.inference_mode(False):
        cosines, sines = (wave.T for wave in _waves(size, places, size // 2 + 1 if is_half else size))
        return torch.complex(cosines, sines if conj else -sines).to(dtype)


@lru_cache(maxsize=512)
def complex_synthesis(size: int, places: Axis, is_half: bool, dtype: torch.dtype) -> Tensor:
    """Return the inverse of `complex_analysis`: (S or S // 2 + 1, count), complex.

    That of half a spectrum gives the real signal it belongs to in the real part.
    """
    with torch.inference_mode(False):
        shares = _shares(size)[:, None] if is_half else 1.0 / size
        cosines, sines = (wave * shares for wave in _waves(size, places, size // 2 + 1 if is_half else size))
        return torch.complex(cosines, sines).to(dtype)


def _waves(size: int, places: Axis, frequencies: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of 2 pi f u / S for f = 0, 1, .. (rows) and places or cells u (columns), in float64."""
    step, count = (places.step, places.count) if isinstance(places, Placement) else (1, sum(places.sizes))
    where = places.start + step * torch.arange(count, dtype=torch.int64, device="cpu")
    # Reduced before the product with pi, so that large sizes lose no digits.
    turns = torch.arange(frequencies, dtype=torch.int64, device="cpu")[:, None] * where % size
    angles = turns.double() * (2 * math.pi / size)
    return _summed(angles.cos(), places), _summed(angles.sin(), places)


def _summed(wave: Tensor, places: Axis) -> Tensor:
    if isinstance(places, Placement):
        return wave
    bounds = (0, *accumulate(places.sizes))
    return torch.stack([wave[:, start:end].sum(-1) for start, end in pairwise(bounds)], -1)


def _shares(size: int) -> Tensor:
    """Weight of each frequency in the inverse: those that stand for themselves and their conjugate count twice."""
    shares = torch.full((size // 2 + 1,), 2.0 / size, dtype=torch.float64, device="cpu")
    shares[0] = 1.0 / size
    if size % 2 == 0:
        shares[-1] = 1.0 / size
    return shares
