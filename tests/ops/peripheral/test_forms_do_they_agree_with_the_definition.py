from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from widefield.ops.depthwise_conv.problem import Layout, layout_of, memory_format
from widefield.ops.peripheral_conv import FORM_NAMES, registration
from widefield.ops.peripheral_conv.form import MAPS, Map
from widefield.ops.peripheral_kernel import SharingGrid

TORCH_FORMS = tuple(name for name in FORM_NAMES if name != "triton")
EPS = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True, kw_only=True)
class Case:
    rows: SharingGrid
    columns: SharingGrid
    x: Tensor
    cells: Tensor
    bias: Tensor | None
    grad: Tensor

    def run(self, map_: Map, form: str, backend: str = "") -> Tensor:
        settings_ = (self.rows.sizes, self.columns.sizes, form, backend)
        if map_ == "forward":
            return registration.forward(self.x, self.cells, self.bias, *settings_)
        if map_ == "grad_input":
            return registration.grad_input(self.grad, self.cells, *settings_)
        return registration.grad_cells(self.grad, self.x, *settings_)

    def exact(self, map_: Map) -> Tensor:
        """The map in float64 by the definition: the expanded kernel, tap by tap."""
        return self.each(lambda value: value.double()).run(map_, "expanded", "reference")

    def magnitude(self, map_: Map) -> float:
        """Largest sum of the absolute terms of an output: the scale of its rounding error."""
        out = self.each(lambda value: value.double().abs()).run(map_, "expanded", "reference")
        return out.max().item() if out.numel() else 0.0

    def each(self, change: Callable[[Tensor], Tensor]) -> Case:
        return Case(
            rows=self.rows,
            columns=self.columns,
            x=change(self.x),
            cells=change(self.cells),
            bias=None if self.bias is None else change(self.bias),
            grad=change(self.grad),
        )


def make_case(
    rows: SharingGrid,
    columns: SharingGrid,
    size: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    *,
    layout: Layout = "contiguous",
    mean: float = 0.0,
    with_bias: bool = True,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    form = memory_format(layout)
    return Case(
        rows=rows,
        columns=columns,
        x=(draw(*size) + mean).to(dtype).contiguous(memory_format=form),
        cells=draw(size[1], 1, rows.parameters, columns.parameters).to(dtype),
        bias=draw(size[1]).to(dtype) if with_bias else None,
        grad=draw(*size).to(dtype).contiguous(memory_format=form),
    )


@st.composite
def odd_grids(draw: st.DrawFn) -> SharingGrid:
    """Any sizes whose sum is odd, symmetric or not."""
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    return SharingGrid((*sizes[:-1], sizes[-1] + (sum(sizes) + 1) % 2))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return make_case(
        draw(odd_grids()),
        draw(odd_grids()),
        (draw(st.integers(0, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 24)), draw(st.integers(1, 24))),
        draw(st.sampled_from(tuple(EPS))),
        layout=draw(st.sampled_from(("contiguous", "channels_last"))),
        with_bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(cases(), st.sampled_from(MAPS), st.sampled_from(("", *TORCH_FORMS)))
def test_every_form_computes_the_convolution(case: Case, map_: Map, form: str) -> None:
    out, exact = case.run(map_, form), case.exact(map_)
    like = case.cells if map_ == "grad_cells" else case.x
    assert (out.shape, out.dtype) == (like.shape, like.dtype)
    if map_ != "grad_cells":
        assert layout_of(out) == layout_of(case.x)
    # The output's own rounding, then that of sums in float32 whose terms may exceed their result.
    wide = EPS[torch.float64 if out.dtype == torch.float64 else torch.float32]
    bound = EPS[out.dtype] * exact.abs() * 1.01 + 40 * wide * case.magnitude(map_) + 1e-7 * (out.dtype == torch.float16)
    if form in ("", "expanded") and out.dtype in (torch.bfloat16, torch.float16):
        # A dense backend of PyTorch may round products and the dense gradient to half precision.
        bound = bound + 8 * EPS[out.dtype] * case.magnitude(map_)
    assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("form", TORCH_FORMS)
@pytest.mark.parametrize("mean", [0.0, 4.0])
@pytest.mark.parametrize("map_", MAPS)
def test_a_large_kernel_keeps_its_digits_whatever_the_mean(form: str, mean: float, map_: Map) -> None:
    grid = SharingGrid.exponential(101, 3)
    case = make_case(grid, grid, (1, 2, 56, 56), mean=mean)
    exact = case.exact(map_)
    error = (case.run(map_, form).double() - exact).norm() / exact.norm()
    assert error < 3e-6
    if form in ("box_rows", "spectral"):
        assert error < 1e-6


@pytest.mark.parametrize("form", TORCH_FORMS)
@pytest.mark.parametrize("map_", MAPS)
def test_a_kernel_beyond_the_map_loses_only_taps_that_meet_no_pixel(form: str, map_: Map) -> None:
    rows, columns = SharingGrid((2, 9, 3, 1, 6)), SharingGrid((4, 4, 1, 1, 1, 4, 30))
    case = make_case(rows, columns, (2, 3, 4, 5), torch.float64)
    exact = case.exact(map_)
    torch.testing.assert_close(case.run(map_, form), exact, rtol=1e-12, atol=1e-12)
    if map_ == "grad_cells":
        # Columns of cells that lie 5 or more pixels from the central tap.
        assert (exact[..., :4] == 0).all()
        assert (exact[..., 6] != 0).any()


@pytest.mark.parametrize("form", TORCH_FORMS)
def test_nothing_is_left_of_what_memory_held(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = SharingGrid((5, 2, 1, 1, 1, 2, 5))
    case = make_case(grid, grid, (2, 3, 9, 12), torch.float64)
    expected = {map_: case.run(map_, form) for map_ in MAPS}
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    for map_ in MAPS:
        assert torch.equal(case.run(map_, form), expected[map_])


@pytest.mark.parametrize("form", ["box_rows", "summed_area"])
def test_a_value_that_is_not_finite_stays_in_its_channel(form: str) -> None:
    grid = SharingGrid.exponential(5)
    case = make_case(grid, grid, (1, 3, 6, 6))
    case.x[0, 1, 2, 2] = float("inf")
    out = case.run("forward", form)
    assert out[:, [0, 2]].isfinite().all()
    assert not out[:, 1].isfinite().all()
