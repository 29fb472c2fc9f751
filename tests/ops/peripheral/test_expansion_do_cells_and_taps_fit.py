from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap

from widefield._core.errors import InputError
from widefield.ops.peripheral_kernel import SharingGrid, peripheral_kernel, sum_cells

ROWS, COLUMNS = SharingGrid((3, 1, 2)), SharingGrid((1, 4))
grids = st.lists(st.integers(1, 7), min_size=1, max_size=6).map(lambda sizes: SharingGrid(tuple(sizes)))


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expand(cells: Tensor) -> Tensor:
    return peripheral_kernel(cells, ROWS, COLUMNS)


def total(kernel: Tensor) -> Tensor:
    return sum_cells(kernel, ROWS, COLUMNS)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(grids, grids, st.sampled_from((torch.float64, torch.float32, torch.bfloat16, torch.float16)))
def test_every_tap_has_exactly_the_value_of_its_cell(
    rows: SharingGrid, columns: SharingGrid, dtype: torch.dtype
) -> None:
    cells = draw(2, 1, rows.parameters, columns.parameters).to(dtype)
    kernel = peripheral_kernel(cells, rows, columns)
    assert kernel.dtype == dtype
    assert kernel.shape == (2, 1, rows.kernel_size, columns.kernel_size)
    for a, (top, bottom) in enumerate(zip(rows.bounds[:-1], rows.bounds[1:], strict=True)):
        for b, (left, right) in enumerate(zip(columns.bounds[:-1], columns.bounds[1:], strict=True)):
            assert (kernel[:, :, top:bottom, left:right] == cells[:, :, a : a + 1, b : b + 1]).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(grids, grids)
def test_the_cell_sums_are_the_adjoint(rows: SharingGrid, columns: SharingGrid) -> None:
    cells = draw(3, 1, rows.parameters, columns.parameters)
    kernel = draw(3, 1, rows.kernel_size, columns.kernel_size, seed=1)
    left = (peripheral_kernel(cells, rows, columns) * kernel).sum()
    right = (cells * sum_cells(kernel, rows, columns)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_half_precision_is_summed_in_float32() -> None:
    grid = SharingGrid((101,))
    kernel = torch.full((1, 1, 101, 101), 0.125, dtype=torch.bfloat16)
    assert sum_cells(kernel, grid).item() == torch.tensor(101 * 101 / 8).bfloat16().item()


def test_autocast_does_not_lower_the_sums() -> None:
    kernel = draw(1, 1, 6, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        sums = total(kernel)
    assert torch.equal(sums, total(kernel))


def test_one_grid_serves_both_axes() -> None:
    cells = draw(2, 1, 3, 3)
    assert torch.equal(peripheral_kernel(cells, ROWS), peripheral_kernel(cells, ROWS, ROWS))
    assert torch.equal(sum_cells(draw(2, 1, 6, 6), ROWS), sum_cells(draw(2, 1, 6, 6), ROWS, ROWS))


def test_first_and_second_derivatives_are_right() -> None:
    cells, kernel = draw(2, 1, 3, 2).requires_grad_(), draw(2, 1, 6, 5).requires_grad_()
    for function, value in ((expand, cells), (total, kernel)):
        assert gradcheck(function, (value,))
        assert gradgradcheck(lambda v, f=function: f(v).square(), (value,))


def test_functions_of_torch_func_map_and_differentiate_them() -> None:
    cells = draw(2, 4, 1, 3, 2)
    got = vmap(grad(lambda c: total(expand(c).sin()).square().sum()), in_dims=1, out_dims=1)(cells)
    for index in range(4):
        leaf = cells[:, index].clone().requires_grad_()
        total(expand(leaf).sin()).square().sum().backward()
        torch.testing.assert_close(got[:, index], leaf.grad)


def test_a_compiled_graph_gives_the_same() -> None:
    function = torch.compile(lambda c: total(expand(c).sin()), fullgraph=True, backend="aot_eager")
    cells, plain = draw(2, 1, 3, 2).requires_grad_(), draw(2, 1, 3, 2).requires_grad_()
    function(cells).sum().backward()
    total(expand(plain).sin()).sum().backward()
    torch.testing.assert_close(cells.grad, plain.grad)


@pytest.mark.parametrize(
    ("function", "shape", "sentence"),
    [
        (
            expand,
            (2, 1, 3, 3),
            "Expected parameters (C, 1, P_h, P_w) for grids of 3 x 2 cells, but got shape (2, 1, 3, 3)",
        ),
        (expand, (3, 2), "but got shape (3, 2): give both the same sizes."),
        (total, (2, 2, 6, 5), "Expected a kernel (C, 1, K_h, K_w) for grids of 6 x 5 taps, but got shape (2, 2, 6, 5)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(function: object, shape: tuple[int, ...], sentence: str) -> None:
    assert callable(function)
    with pytest.raises(InputError, match=re.escape(sentence)):
        function(torch.zeros(shape))
