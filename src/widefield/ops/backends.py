"""What a backend is: a name, the reasons why it cannot run a problem, and the three bilinear maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    from torch import Tensor

    from widefield.ops.depthwise_conv.problem import Problem

Pass = Literal["forward", "grad_input", "grad_weight"]
PASSES: tuple[Pass, ...] = get_args(Pass)


class Backend(Protocol):
    """Code that can compute some of the three maps of a depthwise convolution.

    With ``F(x, w)`` the convolution, the maps are tied by ``<F(x, w), g> = <x, G_x(g, w)> = <w, G_w(g, x)>``.
    A backend may return any memory format and any floating dtype: the registered operators convert.
    """

    name: str
    summary: str

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        """Return every reason, each a clause, why this map of this problem cannot run here; empty if it can."""
        ...

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """Return ``F(x, w) + bias``, shape (N, C, P, Q)."""
        ...

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        """Return ``G_x(g, w)``, shape (N, C, H, W)."""
        ...

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        """Return ``G_w(g, x)``, shape (C, 1, K_h, K_w)."""
        ...


def find(backends: Sequence[Backend], name: str) -> Backend:
    """Return the backend called `name`; the caller has checked that there is one."""
    return next(backend for backend in backends if backend.name == name)
