from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from widefield._core.errors import InputError
from widefield.ops import depthwise_conv2d, use_backend
from widefield.ops.peripheral_conv import FORM_NAMES, PeripheralProblem, peripheral_conv2d
from widefield.ops.peripheral_conv.form import MAPS
from widefield.ops.peripheral_conv.order import FORMS, choose, order
from widefield.ops.peripheral_kernel import SharingGrid, peripheral_kernel

GRID = SharingGrid.exponential(13)


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, CELLS, BIAS = draw(2, 3, 10, 8), draw(3, 1, 9, 9, seed=1), draw(3, seed=2)


def test_it_is_the_depthwise_convolution_with_the_expanded_kernel() -> None:
    expected = depthwise_conv2d(X, peripheral_kernel(CELLS, GRID), BIAS)
    torch.testing.assert_close(peripheral_conv2d(X, CELLS, BIAS, rows=GRID), expected)


def test_rows_and_columns_may_have_different_grids() -> None:
    columns = SharingGrid((1, 4, 2))
    cells = draw(3, 1, 9, 3)
    expected = depthwise_conv2d(X, peripheral_kernel(cells, GRID, columns))
    torch.testing.assert_close(peripheral_conv2d(X, cells, rows=GRID, columns=columns), expected)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_embedding_adds_the_constant_of_equation_3(with_bias: bool) -> None:
    embedding, bias = draw(3, 13, 13, seed=4), BIAS if with_bias else None
    kernel = peripheral_kernel(CELLS, GRID)
    # Equation 3 as written: the window's pixels, zeros outside the image included, each with its embedding added.
    padded = torch.nn.functional.pad(X, (6, 6, 6, 6))
    windows = padded.unfold(2, 13, 1).unfold(3, 13, 1) + embedding[:, None, None]
    expected = (windows * kernel[:, 0, None, None]).sum((-2, -1))
    if bias is not None:
        expected = expected + bias[:, None, None]
    torch.testing.assert_close(peripheral_conv2d(X, CELLS, bias, rows=GRID, embedding=embedding), expected)


def test_the_constant_is_summed_in_float32() -> None:
    grid = SharingGrid.exponential(51)
    cells, x = torch.full((1, 1, 13, 13), 2.0**-6), torch.zeros(1, 1, 3, 3)
    y = peripheral_conv2d(x.bfloat16(), cells.bfloat16(), rows=grid, embedding=torch.ones(1, 51, 51).bfloat16())
    assert (y == torch.tensor(51 * 51 / 64).bfloat16()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_type_and_memory_format_of_the_input_are_kept(dtype: torch.dtype) -> None:
    x = X.to(dtype).contiguous(memory_format=torch.channels_last)
    y = peripheral_conv2d(x, CELLS.to(dtype), BIAS.to(dtype), rows=GRID)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("form", [None, *(name for name in FORM_NAMES if name != "triton")])
@pytest.mark.parametrize("shape", [(0, 3, 10, 8), (2, 3, 0, 8)])
def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(form: str | None, shape: tuple[int, ...]) -> None:
    x, cells = torch.zeros(shape, requires_grad=True), CELLS.float().requires_grad_()
    y = peripheral_conv2d(x, cells, rows=GRID, form=form)
    assert y.shape == shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape
    assert cells.grad is not None
    assert (cells.grad == 0).all()


def test_autocast_casts_what_it_reads() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = peripheral_conv2d(X.float(), CELLS.float(), BIAS.float(), rows=GRID, embedding=draw(3, 13, 13).float())
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["expanded", "spectral", "box_rows", "summed_area"])
def test_autocast_lowers_nothing_within_a_form(form: str) -> None:
    x, cells, bias, embedding = (value.bfloat16() for value in (X, CELLS, BIAS, draw(3, 13, 13)))
    expected = peripheral_conv2d(x, cells, bias, rows=GRID, embedding=embedding, form=form)
    with torch.autocast("cpu", torch.bfloat16):
        y = peripheral_conv2d(x, cells, bias, rows=GRID, embedding=embedding, form=form)
    assert torch.equal(y, expected)


def test_an_input_that_is_a_view_is_read_as_it_looks() -> None:
    wide = draw(4, 6, 12, 20)
    view = wide[::2, ::2, 1:11, 3:19:2]
    torch.testing.assert_close(
        peripheral_conv2d(view, CELLS, rows=GRID), peripheral_conv2d(view.clone(), CELLS, rows=GRID)
    )


def test_the_meta_device_gives_shapes() -> None:
    y = peripheral_conv2d(torch.empty(2, 3, 10, 8, device="meta"), torch.empty(3, 1, 9, 9, device="meta"), rows=GRID)
    assert y.shape == (2, 3, 10, 8)


@pytest.mark.parametrize("name", ["aten", "reference"])
def test_a_forced_backend_runs_the_expanded_kernel_backward_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from widefield.ops.depthwise_conv import maps

    seen: list[tuple[str, str]] = []
    for map_ in ("forward", "grad_input", "grad_weight"):
        original = getattr(maps, map_)
        monkeypatch.setattr(maps, map_, lambda *a, _m=map_, _o=original: seen.append((_m, a[-1])) or _o(*a))
    x, cells = X.clone().requires_grad_(), CELLS.clone().requires_grad_()
    with use_backend(name):
        y = peripheral_conv2d(x, cells, rows=GRID)
    y.sum().backward()
    assert sorted(seen) == [("forward", name), ("grad_input", name), ("grad_weight", name)]


@pytest.mark.parametrize("map_", MAPS)
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_the_order_names_forms_that_run_there(map_: str, device: str) -> None:
    for kernel_size in (5, 31, 101):
        grid = SharingGrid.exponential(kernel_size)
        problem = PeripheralProblem(
            batch=1, channels=8, height=56, width=56, rows=grid, columns=grid, device_type=device
        )
        names = order(problem, map_)  # type: ignore[arg-type]
        assert set(names) <= set(FORM_NAMES)
        assert choose(problem, map_, "", "").name == names[0]  # type: ignore[arg-type]


def test_forms_say_in_words_what_they_are() -> None:
    assert all(form.name and form.summary for form in FORMS)
    problem = PeripheralProblem(batch=1, channels=8, height=56, width=56, rows=GRID, columns=GRID)
    assert str(problem) == "peripheral 9x9 cells, 13x13 on N1 C8 56x56, float32, contiguous, cpu"


def call(**changes: Any) -> Tensor:
    arguments: dict[str, Any] = {"x": X, "cells": CELLS, "bias": BIAS, "rows": GRID} | changes
    return peripheral_conv2d(arguments.pop("x"), arguments.pop("cells"), arguments.pop("bias"), **arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x": X[0]}, "Expected an input (N, C, H, W), but got 3 dimensions (3, 10, 8)"),
        ({"rows": SharingGrid((2, 2))}, "Expected grids whose cells sum to an odd kernel size, but got 4 x 4 taps"),
        (
            {"cells": CELLS[:2]},
            "Expected cells of shape (3, 1, 9, 9), for the input's channels and the grids, but got sh",
        ),
        ({"bias": BIAS[:2]}, "Expected a bias of shape (3,), but got shape (2,)"),
        ({"embedding": X[0]}, "Expected an embedding of shape (3, 13, 13), but got shape (3, 10, 8)"),
        ({"x": X.long()}, "Expected a floating-point input, but got torch.int64"),
        (
            {"x": X.float()},
            "Expected input, cells, bias and embedding of one dtype, but got torch.float32, torch.float64",
        ),
        ({"x": X.to("meta")}, "Expected input, cells, bias and embedding on one device, but got meta, cpu, cpu"),
        ({"form": "spectrall"}, "Expected the name of a form, but got 'spectrall': did you mean 'spectral'"),
        (
            {"form": "triton"},
            "a problem whose forward the form 'triton' can run, but got peripheral 9x9 cells, 13x13 on N2",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        call(**changes)
