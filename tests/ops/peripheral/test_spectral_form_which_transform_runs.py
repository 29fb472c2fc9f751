from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from widefield.ops import depthwise_conv2d, peripheral_conv2d, use_backend
from widefield.ops.backends import PASSES, Pass
from widefield.ops.depthwise_conv import maps
from widefield.ops.depthwise_conv.fft import FftBackend, FourierMaps, LibraryTransform, MatrixTransform
from widefield.ops.depthwise_conv.fft.maps import Kind
from widefield.ops.depthwise_conv.order import machine, predictions
from widefield.ops.depthwise_conv.problem import Layout, memory_format
from widefield.ops.peripheral_conv import PeripheralProblem, spectral
from widefield.ops.peripheral_conv.clip import clip
from widefield.ops.peripheral_conv.form import MAPS, Map
from widefield.ops.peripheral_conv.order import LARGEST_SMALL_KERNEL, order
from widefield.ops.peripheral_kernel import SharingGrid, peripheral_kernel, sum_cells

KINDS: dict[str, Kind] = {"fft": LibraryTransform, "dft": MatrixTransform}
PASS_OF: dict[Map, Pass] = {"forward": "forward", "grad_input": "grad_input", "grad_cells": "grad_weight"}


def make_problem(
    side: int, grid: SharingGrid, *, batch: int = 2, channels: int = 8, device_type: str = "cpu"
) -> PeripheralProblem:
    asked = PeripheralProblem(
        batch=batch, channels=channels, height=side, width=side, rows=grid, columns=grid, device_type=device_type
    )
    return clip(asked)[0]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Generator[pytest.MonkeyPatch]:
    """Let predictions be replaced: no choice made with them outlives the test."""
    spectral.kind.cache_clear()
    yield monkeypatch
    spectral.kind.cache_clear()


@st.composite
def odd_grids(draw_: st.DrawFn) -> SharingGrid:
    sizes = draw_(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    return SharingGrid((*sizes[:-1], sizes[-1] + (sum(sizes) + 1) % 2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    odd_grids(),
    odd_grids(),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 16), st.integers(1, 16)),
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(("contiguous", "channels_last")),
)
def test_either_transform_gives_all_three_maps(
    rows: SharingGrid, columns: SharingGrid, size: tuple[int, int, int, int], name: str, layout: Layout
) -> None:
    batch, channels, height, width = size
    asked = PeripheralProblem(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        rows=rows,
        columns=columns,
        dtype=torch.float64,
        layout=layout,
    )
    problem, _ = clip(asked)
    rows, columns = problem.rows, problem.columns
    x, grad = (draw(*size, seed=seed).contiguous(memory_format=memory_format(layout)) for seed in (0, 1))
    cells, bias = draw(channels, 1, rows.parameters, columns.parameters, seed=2), draw(channels, seed=3)
    leaves = x.clone().requires_grad_(), peripheral_kernel(cells, rows, columns).requires_grad_()
    with use_backend("reference"):
        y = depthwise_conv2d(*leaves, bias)
    dx, taps = torch.autograd.grad(y, leaves, grad)

    places = spectral.places_of(problem)
    make = lambda: FourierMaps(KINDS[name], problem.dense(), places)  # noqa: E731
    torch.testing.assert_close(make().forward(x, cells, bias), y.detach())
    torch.testing.assert_close(make().grad_input(grad, cells), dx)
    torch.testing.assert_close(make().grad_kernel(grad, x), sum_cells(taps, rows, columns))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pass_", PASSES)
def test_the_transform_with_fewer_predicted_milliseconds_is_taken(
    name: str, pass_: Pass, only: pytest.MonkeyPatch
) -> None:
    other = "dft" if name == "fft" else "fft"
    only.setattr(spectral, "predictions", lambda *_: {name: 1.0, other: 2.0, "aten": 0.5})
    dense = make_problem(20, SharingGrid.exponential(31)).dense()
    assert spectral.kind(dense, pass_, machine()) is KINDS[name]


@pytest.mark.parametrize("map_", MAPS)
def test_the_predictions_are_those_of_the_dense_convolution_and_its_map(map_: Map, only: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    only.setattr(
        spectral,
        "predictions",
        lambda dense, pass_, here: seen.append((dense, pass_)) or predictions(dense, pass_, here),
    )
    problem = make_problem(9, SharingGrid.exponential(15))
    x, grad = draw(2, 8, 9, 9).float(), draw(2, 8, 9, 9, seed=1).float()
    cells = draw(8, 1, problem.rows.parameters, problem.columns.parameters).float()
    form = spectral.SpectralForm()
    if map_ == "forward":
        form.forward(x, cells, None, problem)
    elif map_ == "grad_input":
        form.grad_input(grad, cells, problem)
    else:
        form.grad_cells(grad, x, problem)
    assert seen == [(problem.dense(), PASS_OF[map_])]


def test_products_of_matrices_that_torch_would_round_are_not_taken(only: pytest.MonkeyPatch) -> None:
    only.setattr(spectral, "predictions", lambda *_: {"fft": 2.0, "dft": 1.0})
    dense, before = make_problem(20, SharingGrid.exponential(31)).dense(), torch.get_float32_matmul_precision()
    try:
        assert spectral.kind(dense, "forward", machine()) is MatrixTransform
        torch.set_float32_matmul_precision("medium")
        assert spectral.kind(dense, "forward", machine()) is LibraryTransform
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", KINDS)
def test_spectra_of_cells_are_kept_while_these_stay(name: str, only: pytest.MonkeyPatch) -> None:
    only.setattr(spectral, "predictions", lambda *_: {other: float(other != name) for other in KINDS})
    made: list[int] = []
    original = FourierMaps._spectra
    only.setattr(FourierMaps, "_spectra", lambda self, kernel: made.append(1) or original(self, kernel))
    grid = SharingGrid.exponential(31)
    x, cells = draw(2, 3, 20, 18), nn.Parameter(draw(3, 1, grid.parameters, grid.parameters))

    def call() -> Tensor:
        with torch.no_grad():
            return peripheral_conv2d(x, cells, rows=grid, form="spectral")

    expected = depthwise_conv2d(x, peripheral_kernel(cells.detach(), grid))
    for _ in range(4):
        torch.testing.assert_close(call(), expected)
    assert len(made) == 1
    with torch.no_grad():
        cells.mul_(2)
    for _ in range(3):
        torch.testing.assert_close(call(), 2 * expected)
    assert len(made) == 2


def test_cells_that_serve_two_grids_have_two_spectra() -> None:
    grids = SharingGrid((3, 1, 1, 1, 5)), SharingGrid((1, 3, 3, 3, 1))
    x, cells = draw(1, 2, 12, 12), draw(2, 1, 5, 5, seed=1)
    for grid in 3 * grids:
        y = peripheral_conv2d(x, cells, rows=grid, form="spectral")
        torch.testing.assert_close(y, depthwise_conv2d(x, peripheral_kernel(cells, grid)))


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("side", [7, 14, 28, 56])
@pytest.mark.parametrize("kernel_size", [5, 13, 15, 31, 101])
def test_it_runs_where_the_dense_convolution_would_be_transformed_too(map_: Map, side: int, kernel_size: int) -> None:
    problem = make_problem(side, SharingGrid.exponential(kernel_size))
    dense = problem.dense()
    backend = maps.chosen(dense, PASS_OF[map_], "", machine())[2]
    is_large = max(dense.kernel_size) > LARGEST_SMALL_KERNEL
    expected = ("spectral", "expanded") if is_large and isinstance(backend, FftBackend) else ("expanded",)
    assert order(problem, map_) == expected


def test_a_cpu_has_both_forms_and_a_gpu_has_one() -> None:
    grid = SharingGrid.exponential(101, 3)
    assert order(make_problem(56, grid, channels=64), "forward")[0] == "spectral"
    assert order(make_problem(56, SharingGrid.exponential(5)), "forward") == ("expanded",)
    assert order(make_problem(7, grid), "forward") == ("expanded",)
    assert order(make_problem(56, grid, device_type="cuda"), "forward") == ("expanded",)


def test_a_kernel_of_so_many_cells_that_their_products_cost_more_is_expanded() -> None:
    few, many = SharingGrid.uniform(101, 2), SharingGrid.dense(101)
    assert order(make_problem(56, few, channels=64), "forward")[0] == "spectral"
    assert order(make_problem(56, many, channels=64), "forward") == ("expanded",)


SCRIPT = """
import sys, torch
from pathlib import Path
from widefield.ops import SharingGrid
from widefield.ops.peripheral_conv import registration
torch.set_num_threads(2)
grid = SharingGrid.exponential(31)

def status(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) / 1024

def call(batch, channels, size):
    x = torch.zeros(batch, channels, size, size)
    cells = torch.zeros(channels, 1, grid.parameters, grid.parameters)
    settings = (grid.sizes, grid.sizes, "spectral", "")
    run = {
        "forward": lambda: registration.forward(x, cells, None, *settings),
        "grad_input": lambda: registration.grad_input(x, cells, *settings),
        "grad_cells": lambda: registration.grad_cells(x, x, *settings),
    }[sys.argv[1]]
    before = status("VmRSS")
    y = run()
    return status("VmHWM") - before - y.numel() * 4 / 2**20, 2 * x.numel() * 4 / 2**20

call(1, 64, 64)
extra, tensors = call(4, 256, 64)
print(extra / tensors)
"""


@pytest.mark.parametrize("map_", MAPS)
def test_a_map_takes_at_most_twice_input_plus_output(map_: str) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, map_]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 2
