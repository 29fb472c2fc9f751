"""The dense convolution's Fourier transforms, with the kernel's spectrum straight from the cells: no expansion."""

from __future__ import annotations

from functools import lru_cache

from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.fft import FftBackend, FourierMaps
from widefield.ops.depthwise_conv.fft.maps import Kind
from widefield.ops.depthwise_conv.fft.placement import CellPlaces, Cells
from widefield.ops.depthwise_conv.order import BACKENDS, Machine, machine, predictions
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.peripheral_conv.form import Map
from widefield.ops.peripheral_conv.problem import PeripheralProblem

_FOURIER = tuple(backend for backend in BACKENDS if isinstance(backend, FftBackend))


class SpectralForm:
    """The transform that is predicted to be faster for the dense kernel of that size, in float32 or float64.

    A value that is not finite spreads over its whole plane, as in every convolution by Fourier transform.
    """

    name = "spectral"
    summary = "Fourier transforms of the maps, the kernel's spectrum straight from the cells (CPU)"

    def refusals(self, problem: PeripheralProblem, map_: Map) -> list[str]:
        """It is for CPU tensors."""
        is_cpu = problem.device_type == "cpu"
        return [] if is_cpu else [f"it is for CPU tensors, not {problem.device_type}"]

    def forward(self, x: Tensor, cells: Tensor, bias: Tensor | None, problem: PeripheralProblem) -> Tensor:
        """Multiply the spectra of image and kernel; those of unchanged cells are kept."""
        return _maps(problem, "forward").forward(x, cells, bias)

    def grad_input(self, grad: Tensor, cells: Tensor, problem: PeripheralProblem) -> Tensor:
        """Multiply the spectra of gradient and kernel."""
        return _maps(problem, "grad_input").grad_input(grad, cells)

    def grad_cells(self, grad: Tensor, x: Tensor, problem: PeripheralProblem) -> Tensor:
        """Sum the cross spectrum over the batch and take its cell sums."""
        return _maps(problem, "grad_weight").grad_kernel(grad, x)


def _maps(problem: PeripheralProblem, pass_: Pass) -> FourierMaps:
    dense = problem.dense()
    return FourierMaps(kind(dense, pass_, machine()), dense, places_of(problem))


def places_of(problem: PeripheralProblem) -> CellPlaces:
    """Return where the cells lie on the circle of the transform: around its origin."""
    rows, columns = (Cells(-(grid.kernel_size // 2), grid.sizes) for grid in (problem.rows, problem.columns))
    return CellPlaces(rows, columns)


@lru_cache(maxsize=4096)
def kind(dense: Problem, pass_: Pass, here: Machine) -> Kind:
    """Return the transform predicted to be faster, of those that the dense convolution may use on the machine."""
    times = predictions(dense, pass_, here)
    able = [backend for backend in _FOURIER if not backend.refusals(dense, pass_)]
    return min(able, key=lambda backend: times[backend.name]).kind
