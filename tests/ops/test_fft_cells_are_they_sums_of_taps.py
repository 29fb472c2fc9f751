from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from widefield.ops.depthwise_conv import fft
from widefield.ops.depthwise_conv.fft.maps import Kind
from widefield.ops.depthwise_conv.fft.placement import CellPlaces, Cells, Placement, Places
from widefield.ops.peripheral_kernel import SharingGrid, peripheral_kernel, sum_cells

KINDS: tuple[Kind, ...] = (fft.LibraryTransform, fft.MatrixTransform)
EPS = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
grids = st.lists(st.integers(1, 7), min_size=1, max_size=6).map(lambda sizes: SharingGrid(tuple(sizes)))


def draw(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def places(rows: SharingGrid, columns: SharingGrid, start: tuple[int, int]) -> tuple[CellPlaces, Places]:
    grids_ = tuple(zip(start, (rows, columns), strict=True))
    shared = [Cells(first, grid.sizes) for first, grid in grids_]
    single = [Placement(first, 1, grid.kernel_size) for first, grid in grids_]
    return CellPlaces(shared[0], shared[1]), (single[0], single[1])


def assert_near(actual: Tensor, expected: Tensor, scale: float) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 30 * EPS[actual.real.dtype] * scale


@settings(max_examples=60, deadline=None, derandomize=True)
@given(grids, grids, st.sampled_from(KINDS), st.sampled_from(tuple(EPS)), st.booleans(), st.data())
def test_the_spectrum_of_cells_is_that_of_the_expanded_kernel_and_its_inverse_sums_over_them(
    rows: SharingGrid, columns: SharingGrid, kind: Kind, dtype: torch.dtype, conj: bool, data: st.DataObject
) -> None:
    taps = rows.kernel_size, columns.kernel_size
    start = -data.draw(st.integers(0, taps[0] - 1)), -data.draw(st.integers(0, taps[1] - 1))
    least = taps[0] + data.draw(st.integers(0, 5)), taps[1] + data.draw(st.integers(0, 5))
    transform = kind(least, dtype)
    shared, single = places(rows, columns, start)
    cells = draw(3, rows.parameters, columns.parameters, dtype=dtype)
    kernel = peripheral_kernel(cells[:, None], rows, columns)[:, 0]
    spectrum = transform.analyse(kernel, single, conj=conj)
    scale = kernel.abs().sum((1, 2)).max().item()
    assert_near(transform.analyse(cells, shared, conj=conj), spectrum, scale)

    other = transform.analyse(draw(3, *taps, dtype=dtype, seed=1), single)
    found = transform.synthesise(other, single)
    sums = sum_cells(found[:, None], rows, columns)[:, 0]
    largest = sum_cells(found.abs()[:, None], rows, columns).max().item()
    assert_near(transform.synthesise(other, shared), sums, largest + taps[0] * taps[1])


@pytest.mark.parametrize("kind", KINDS)
def test_cells_in_half_precision_are_transformed_in_float32(kind: Kind) -> None:
    shared, _ = places(SharingGrid((3, 1, 3)), SharingGrid((2, 1)), (-3, -1))
    cells = draw(2, 3, 2, dtype=torch.bfloat16)
    transform = kind((9, 8), torch.float32)
    spectrum = transform.analyse(cells, shared)
    assert spectrum.dtype == torch.complex64
    assert torch.equal(spectrum, transform.analyse(cells.float(), shared))


@pytest.mark.parametrize("size", [(12, 9), (1, 9), (12, 1), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_circle_may_be_a_line_or_a_point(kind: Kind, size: tuple[int, int]) -> None:
    rows, columns = (SharingGrid((2, 1, 2)) if n > 1 else SharingGrid((1,)) for n in size)
    start = -(rows.kernel_size // 2), -(columns.kernel_size // 2)
    shared, single = places(rows, columns, start)
    transform = kind(size, torch.float64)
    cells = draw(2, rows.parameters, columns.parameters)
    spectrum = transform.analyse(cells, shared)
    kernel = peripheral_kernel(cells[:, None], rows, columns)
    torch.testing.assert_close(spectrum, transform.analyse(kernel[:, 0], single))
    torch.testing.assert_close(transform.synthesise(spectrum, shared), sum_cells(kernel, rows, columns)[:, 0])
