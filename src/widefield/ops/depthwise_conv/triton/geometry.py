"""What the kernels have to know of a problem: one form for both maps, and the band that its Toeplitz matrix fills."""

from __future__ import annotations

from dataclasses import dataclass, replace

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem

SHIFTS = 8
"""Copies of a kernel row, each one element further on, so that every row of a Toeplitz tile starts on 16 bytes."""


def as_forward(problem: Problem, pass_: Pass) -> Problem:
    """Return the problem whose forward map with the kernel turned by 180 degrees is `pass_` of `problem`.

    The gradient of the input is a convolution of the output's gradient with the turned kernel and the complementary
    padding, which is negative where the padding exceeds the kernel. Stride 1 only.
    """
    if pass_ == "forward":
        return problem
    height, width = problem.output_size
    padding = tuple(
        gap * (k - 1) - pad for gap, k, pad in zip(problem.dilation, problem.kernel_size, problem.padding, strict=True)
    )
    return replace(problem, height=height, width=width, padding=(padding[0], padding[1]))


def span(problem: Problem, axis: int) -> int:
    """Return the pixels from the first tap to the last along rows (0) or columns (1), both included."""
    return problem.dilation[axis] * (problem.kernel_size[axis] - 1) + 1


@dataclass(frozen=True, kw_only=True)
class Band:
    """The Toeplitz matrix along one axis, cut into tiles of inputs by outputs.

    Entry (input, output) holds the tap ``input - output + padding``. The outputs from `block_n` t on need the inputs
    from ``first(t)`` on, in `chunks` blocks of `block_k`. A kernel row lies in memory backwards, at ``base - input +
    output``, in `length` elements.
    """

    is_anchored: bool
    """Whether every tile of outputs reads the inputs from 0 on; else from a constant distance before the tile."""
    distance: int
    """First input minus first output of a tile that is not anchored; a multiple of 8."""
    chunks: int
    base: int
    length: int


def band(problem: Problem, axis: int, block_n: int, block_k: int) -> Band:
    """Return the `Band` along one axis (0: contract over rows, 1: over columns) of a forward problem."""
    size_in = (problem.height, problem.width)[axis]
    size_out, reach, pad = problem.output_size[axis], span(problem, axis), problem.padding[axis]
    distance = -pad // 8 * 8
    window = block_n + reach - 1 - pad - distance
    chunks = -(-window // block_k)
    anchored_chunks = -(-size_in // block_k)
    is_anchored = anchored_chunks <= chunks
    if is_anchored:
        chunks, distance = anchored_chunks, 0
    lowest = -(-(-size_out // block_n) - 1) * block_n if is_anchored else distance
    highest = distance + (chunks - 1) * block_k
    base = highest + block_k
    length = -(-(base - lowest + block_n + SHIFTS) // 8) * 8
    return Band(is_anchored=is_anchored, distance=distance, chunks=chunks, base=base, length=length)
