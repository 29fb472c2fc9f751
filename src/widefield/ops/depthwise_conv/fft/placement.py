"""Where images, gradients and taps lie on the circle of a discrete Fourier transform."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from widefield.ops.depthwise_conv.problem import Problem


@dataclass(frozen=True, slots=True)
class Placement:
    """`count` samples at ``start + step i`` on one axis; a negative start wraps around the circle."""

    start: int
    step: int
    count: int

    def pieces(self, size: int) -> list[tuple[slice, slice]]:
        """Return (which samples, where) for a circle of `size` points: one piece, or two if the samples wrap."""
        before = min(self.count, max(0, -(self.start // self.step)))
        pieces: list[tuple[slice, slice]] = []
        for first, last, shift in ((0, before, size), (before, self.count, 0)):
            if first < last:
                begin = self.start + self.step * first + shift
                pieces.append((slice(first, last), slice(begin, begin + self.step * (last - first - 1) + 1, self.step)))
        return pieces


Places = tuple[Placement, Placement]
"""Of rows and columns."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Samples of one axis that each stand at ``sizes[a]`` places; the first begins at `start`, each behind the last."""

    start: int
    sizes: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.sizes)


class CellPlaces(NamedTuple):
    """Where the taps lie of a kernel that has one value for each cell of a grid."""

    rows: Cells
    columns: Cells


@dataclass(frozen=True, slots=True)
class Geometry:
    """Placements of the three operands of a convolution, and the least size of the transform.

    With x at j, taps at ``dilation k - padding`` and outputs at ``stride p``, output p is the correlation of x with the
    taps there, ``y(u) = sum over v of w(v) x(u + v)``. On a circle of `least` points what wraps around meets only the
    zeros beside the image: ``size + padding`` points are enough, where linear convolution would need
    ``size + kernel - 1``.
    """

    image: Places
    gradient: Places
    taps: Places
    least: tuple[int, int]


@lru_cache(maxsize=1024)
def geometry(problem: Problem) -> Geometry:
    """Return the placements for a problem."""
    sizes, outputs = (problem.height, problem.width), problem.output_size
    image: list[Placement] = []
    gradient: list[Placement] = []
    taps: list[Placement] = []
    for axis in range(2):
        image.append(Placement(0, 1, sizes[axis]))
        gradient.append(Placement(0, problem.stride[axis], outputs[axis]))
        taps.append(Placement(-problem.padding[axis], problem.dilation[axis], problem.kernel_size[axis]))
    least = [
        max(
            problem.padding[axis] + sizes[axis],
            problem.dilation[axis] * (problem.kernel_size[axis] - 1) + 1,
            problem.stride[axis] * (outputs[axis] - 1) + 1,
        )
        for axis in range(2)
    ]
    return Geometry(
        image=(image[0], image[1]),
        gradient=(gradient[0], gradient[1]),
        taps=(taps[0], taps[1]),
        least=(least[0], least[1]),
    )


def is_sequence(problem: Problem) -> bool:
    """Whether the problem has one dimension, down the rows: its real transform then goes along them."""
    return problem.width == 1 and problem.height > 1 and problem.kernel_size[1] == 1 and problem.output_size[1] == 1


def mirrored(problem: Problem) -> Problem:
    """Return the problem with rows and columns exchanged."""
    return replace(
        problem,
        height=problem.width,
        width=problem.height,
        kernel_size=problem.kernel_size[::-1],
        stride=problem.stride[::-1],
        padding=problem.padding[::-1],
        dilation=problem.dilation[::-1],
        layout="contiguous",
    )
