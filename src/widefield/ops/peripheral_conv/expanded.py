"""The dense way: expand the cells to a kernel and let the depthwise convolution's backends run it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from widefield.ops.depthwise_conv import maps
from widefield.ops.peripheral_conv.form import Map
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_kernel.expansion import peripheral_kernel, sum_cells
from widefield.ops.weight_cache import derived


class ExpandedForm:
    """`depthwise_conv2d` with the expanded kernel, on one backend or on the best for each map."""

    name = "expanded"
    summary = "the dense K x K kernel on the backends of depthwise_conv2d"

    def __init__(self, backend: str = "") -> None:
        self._backend = backend

    def refusals(self, problem: PeripheralProblem, map_: Map) -> list[str]:
        """It runs every problem that the backends of the depthwise convolution run."""
        return []

    def forward(self, x: Tensor, cells: Tensor, bias: Tensor | None, problem: PeripheralProblem) -> Tensor:
        """Convolve with the expanded kernel."""
        kernel = _kernel(cells, problem)
        return maps.forward(x, kernel, bias, *_geometry(problem), self._backend)

    def grad_input(self, grad: Tensor, cells: Tensor, problem: PeripheralProblem) -> Tensor:
        """Take the input's gradient with the expanded kernel."""
        kernel = _kernel(cells, problem)
        return maps.grad_input(grad, kernel, grad.shape, *_geometry(problem), self._backend)

    def grad_cells(self, grad: Tensor, x: Tensor, problem: PeripheralProblem) -> Tensor:
        """Sum the gradient of the expanded kernel over the cells."""
        taps = maps.grad_weight(grad, x, problem.kernel_size, *_geometry(problem), self._backend)
        return sum_cells(taps, problem.rows, problem.columns)


def _kernel(cells: Tensor, problem: PeripheralProblem) -> Tensor:
    # Kept while the cells stay, so that what the backends derive from the kernel is kept too.
    rows, columns = problem.rows, problem.columns
    return derived(cells, ("expanded", rows, columns), lambda: peripheral_kernel(cells, rows, columns))


def _geometry(problem: PeripheralProblem) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    return (1, 1), problem.dense().padding, (1, 1)
