"""What a form of the peripheral convolution is: a name, the reasons why it cannot run, and the three bilinear maps."""

from __future__ import annotations

from typing import Literal, Protocol, get_args

from torch import Tensor

from widefield.ops.peripheral_conv.problem import PeripheralProblem

Map = Literal["forward", "grad_input", "grad_cells"]
MAPS: tuple[Map, ...] = get_args(Map)


class Form(Protocol):
    """One way to compute the maps; with ``F`` the convolution, ``<F(x, w), g> = <x, G_x(g, w)> = <w, G_w(g, x)>``.

    Images are (N, C, H, W) in any memory format, cells (C, 1, P_h, P_w). A form may return any memory format and any
    floating dtype: the registered operators convert.
    """

    name: str
    summary: str

    def refusals(self, problem: PeripheralProblem, map_: Map) -> list[str]:
        """Return every reason, each a clause, why this map of this problem cannot run here; empty if it can."""
        ...

    def forward(self, x: Tensor, cells: Tensor, bias: Tensor | None, problem: PeripheralProblem) -> Tensor:
        """Return ``F(x, w) + bias``, shape (N, C, H, W)."""
        ...

    def grad_input(self, grad: Tensor, cells: Tensor, problem: PeripheralProblem) -> Tensor:
        """Return ``G_x(g, w)``, shape (N, C, H, W)."""
        ...

    def grad_cells(self, grad: Tensor, x: Tensor, problem: PeripheralProblem) -> Tensor:
        """Return ``G_w(g, x)``, shape (C, 1, P_h, P_w)."""
        ...


def flipped(cells: Tensor) -> Tensor:
    """Return the cells of the kernel turned by 180 degrees, which belong to `PeripheralProblem.transposed`."""
    return cells.flip(-2, -1)
