"""How one axis of a kernel is cut into cells that share a parameter (PeLK, section 4.1, equations 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from widefield._core.checks import check


@dataclass(frozen=True)
class SharingGrid:
    """Sizes of the cells of one axis, from the first tap to the last.

    The same grid on rows and columns cuts a K x K kernel into rectangles; all taps of one have the same value.
    """

    sizes: tuple[int, ...]
    """Taps of each cell; their sum is the kernel size."""

    def __post_init__(self) -> None:
        check(
            len(self.sizes) > 0 and min(self.sizes) > 0,
            "cell sizes that are whole numbers above 0",
            f"{tuple(self.sizes)}",
            "give one size for each cell of the axis, for instance (2, 1, 1, 1, 2)",
        )

    @classmethod
    def dense(cls, kernel_size: int) -> SharingGrid:
        """Return the grid that shares nothing: `kernel_size` cells of one tap (PeLK, table 5, row 1)."""
        check(kernel_size > 0, "a kernel size above 0", f"{kernel_size}", "give the number of taps of the axis")
        return cls((1,) * kernel_size)

    @classmethod
    def exponential(
        cls, kernel_size: int, centre_radius: int = 2, base: int = 2, largest: int | None = None
    ) -> SharingGrid:
        """Return PeLK's grid: single taps in the centre, cells of ``base ** j`` taps outwards (j = 1, 2, ...).

        The outermost cell takes what is left, as in every published grid.

        Args:
            kernel_size: K, odd.
            centre_radius: r_c, single taps on each side of the central one.
            base: m, by which cells grow.
            largest: Cells grow to this size and no further (4 in PeLK's table 5, row 4); without it there is no limit.

        Raises:
            InputError: If the kernel size is even, or another number too small.
        """
        check(base > 1, "a base above 1", f"{base}", "use 2, or SharingGrid.uniform for cells of one size")
        check(largest is None or largest > 0, "a largest cell above 0", f"{largest}", "give its number of taps")
        limit = kernel_size if largest is None else largest
        powers = [min(base**j, limit) for j in range(1, kernel_size + 1)]
        return cls._around_centre(kernel_size, centre_radius, powers)

    @classmethod
    def uniform(cls, kernel_size: int, cell_size: int = 2, centre_radius: int = 0) -> SharingGrid:
        """Return cells of one size around single taps in the centre (PeLK, table 5, rows 2 and 3).

        Args:
            kernel_size: K, odd.
            cell_size: Taps of a cell; the outermost takes what is left.
            centre_radius: Single taps on each side of the central one.

        Raises:
            InputError: If the kernel size is even, or another number too small.
        """
        check(cell_size > 0, "a cell size above 0", f"{cell_size}", "give the number of taps of a cell")
        return cls._around_centre(kernel_size, centre_radius, [cell_size] * kernel_size)

    @classmethod
    def from_half(cls, half: Sequence[int]) -> SharingGrid:
        """Return the symmetric grid of which papers print one half, from the outermost cell to the central one.

        Args:
            half: Cell sizes, the last that of the central cell: ``[9, 8, 4, 2, 1, 1, 1]`` is PeLK's 51.
        """
        return cls((*half, *reversed(half[:-1])))

    @classmethod
    def _around_centre(cls, kernel_size: int, centre_radius: int, outwards: Sequence[int]) -> SharingGrid:
        check(
            kernel_size > 0 and kernel_size % 2 == 1,
            "an odd kernel size",
            f"{kernel_size}",
            f"use {max(kernel_size, 0) | 1}, or give the cells as SharingGrid(sizes)",
        )
        check(centre_radius >= 0, "a centre radius of at least 0", f"{centre_radius}", "use 0 for a single central tap")
        side = [1] * min(centre_radius, kernel_size // 2)
        rest = kernel_size // 2 - len(side)
        for size in outwards:
            if rest == 0:
                break
            side.append(min(size, rest))
            rest -= side[-1]
        return cls.from_half([*reversed(side), 1])

    @property
    def kernel_size(self) -> int:
        """K, taps of the axis."""
        return sum(self.sizes)

    @property
    def parameters(self) -> int:
        """P, cells of the axis: a kernel with this grid on both has P x P free parameters."""
        return len(self.sizes)

    @property
    def ratio(self) -> float:
        """Free parameters of a kernel with this grid on both axes, as a share of the dense K x K."""
        return (self.parameters / self.kernel_size) ** 2

    @property
    def bounds(self) -> tuple[int, ...]:
        """First tap of each cell, and K: P + 1 numbers."""
        return (0, *accumulate(self.sizes))

    @property
    def is_symmetric(self) -> bool:
        """Whether the grid reads the same from both ends."""
        return self.sizes == self.sizes[::-1]

    @property
    def half(self) -> tuple[int, ...]:
        """Cell sizes from the outermost to the central one, as papers print them.

        Raises:
            InputError: If the grid is not symmetric about a central cell.
        """
        check(
            self.is_symmetric and self.parameters % 2 == 1,
            "a grid that is symmetric about a central cell",
            f"{self.sizes}",
            "read its sizes instead",
        )
        return self.sizes[: self.parameters // 2 + 1]

    def reversed(self) -> SharingGrid:
        """Return the grid of the flipped kernel."""
        return SharingGrid(self.sizes[::-1])

    def inverted(self) -> SharingGrid:
        """Return the grid with the cells of each half in opposite order: coarse near the centre (table 5, row 6).

        Raises:
            InputError: If the grid is not symmetric about a central cell.
        """
        *side, centre = self.half
        return SharingGrid.from_half([*side[::-1], centre])

    def cropped(self, margin: int) -> tuple[SharingGrid, int]:
        """Return the grid without `margin` taps at each end, and how many cells at the start go altogether.

        Args:
            margin: Taps to cut at each end; fewer than half of them.
        """
        check(
            0 <= 2 * margin < self.kernel_size,
            f"a margin of at least 0 that leaves some of the {self.kernel_size} taps",
            f"{margin}",
            "cut fewer taps",
        )
        first, last = margin, self.kernel_size - margin
        edges = self.bounds
        kept = [min(end, last) - max(start, first) for start, end in pairwise(edges) if end > first and start < last]
        return SharingGrid(tuple(kept)), sum(end <= first for end in edges[1:])
