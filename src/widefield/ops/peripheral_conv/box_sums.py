"""Sums over the cells of one axis, for every pixel at once, from prefix sums."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from widefield.ops.peripheral_kernel.grid import SharingGrid

CHUNK_BYTES = 2**20
"""Working memory of one chunk of channels: about what a core's cache holds."""


def chunk_length(channels: int, bytes_each: int) -> int:
    """Return how many channels fit `CHUNK_BYTES` together, at least one."""
    return max(1, min(channels, CHUNK_BYTES // max(bytes_each, 1)))


def extended(x: Tensor, margin: int, dim: int) -> Tensor:
    """Return `x` with `margin` zeros before and after along `dim`."""
    zeros = _zeros(x, margin, dim)
    return torch.cat((zeros, x, zeros), dim)


def extended_prefix(x: Tensor, margin: int, dim: int) -> Tensor:
    """Return the exclusive prefix sums of ``extended(x, margin)``: n + 2 margin + 1 long.

    Entry i + t is the sum of all pixels before i + t - margin, so the sum of x[i + d] over the taps t to u of a kernel
    with half-width `margin` is entry i + u minus entry i + t: zero padding costs no test.
    """
    total = x.cumsum(dim)
    shape = list(x.shape)
    shape[dim] = margin
    last = total.narrow(dim, x.shape[dim] - 1, 1).expand(shape)
    return torch.cat((_zeros(x, margin + 1, dim), total, last), dim)


def box_sums(x: Tensor, grid: SharingGrid, dim: int, out: Tensor) -> Tensor:
    """Write ``out[a] = sum over the taps t of cell a of x[i + t - K // 2]`` for every pixel i along `dim`.

    Cells of one tap are copied, the others are differences of prefix sums in the type of `x`.

    Args:
        x: Images in float32 or float64.
        grid: Cells of the axis; K is odd.
        dim: The axis, negative.
        out: (P, *x.shape), or a view of it; overwritten.

    Returns:
        `out`.
    """
    margin, size, bounds = grid.kernel_size // 2, x.shape[dim], grid.bounds
    pixels = extended(x, margin, dim)
    prefix = extended_prefix(x, margin, dim)
    for box, (start, end) in zip(out, pairwise(bounds), strict=True):
        if end - start == 1:
            box.copy_(pixels.narrow(dim, start, size))
        else:
            torch.sub(prefix.narrow(dim, end, size), prefix.narrow(dim, start, size), out=box)
    return out


def _zeros(x: Tensor, count: int, dim: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] = count
    return x.new_zeros(shape)
