from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from widefield._core.errors import InputError
from widefield.ops import (
    SharingGrid,
    decomposed_conv2d,
    depthwise_conv2d,
    peripheral_conv2d,
    peripheral_kernel,
    sum_cells,
    use_backend,
)

# The first forward derivative of a process lets torch prepare its own rules with a function that it deprecates.
pytestmark = pytest.mark.filterwarnings("default:.*torch.jit.script.*:FutureWarning")

Function = Callable[..., Tensor]
BACKENDS = pytest.mark.parametrize("backend", ["", "aten", "channels_last", "fft", "dft", "reference"])
GRID = SharingGrid.exponential(7, centre_radius=1)


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=weight.shape[0])


def cross(x: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    return plain(x, tall) + plain(x, wide)


@contextmanager
def on(backend: str) -> Iterator[None]:
    with use_backend(backend) if backend else nullcontext():
        yield


OPERATORS: dict[str, tuple[Function, Function, tuple[Tensor, ...]]] = {
    "dense": (depthwise_conv2d, plain, (draw(2, 3, 6, 5), draw(3, 1, 5, 3), draw(3))),
    "stripes": (
        lambda *t: decomposed_conv2d(*t, form="stripes"),
        cross,
        (draw(1, 2, 6, 5), draw(2, 1, 5, 3), draw(2, 1, 3, 5)),
    ),
    "cross": (
        lambda *t: decomposed_conv2d(*t, form="cross"),
        cross,
        (draw(1, 2, 6, 5), draw(2, 1, 5, 3), draw(2, 1, 3, 5)),
    ),
    **{
        form: (
            lambda *t, form=form: peripheral_conv2d(*t, rows=GRID, form=form),
            lambda x, cells, bias: plain(x, expanded(cells), bias),
            (draw(2, 3, 6, 5), draw(3, 1, 5, 5), draw(3)),
        )
        for form in ("expanded", "spectral", "box_rows", "summed_area")
    },
}


def expanded(cells: Tensor) -> Tensor:
    sizes = torch.tensor(GRID.sizes)
    return cells.repeat_interleave(sizes, 2).repeat_interleave(sizes, 3)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("which", ["all", 0, 1, 2])
def test_tangents_are_those_of_pytorch(name: str, which: Any) -> None:
    mine, theirs, values = OPERATORS[name]
    places = range(len(values)) if which == "all" else [which]

    def of(function: Function) -> tuple[Tensor, Tensor]:
        def partial(*some: Tensor) -> Tensor:
            given = dict(zip(places, some, strict=True))
            return function(*(given.get(i, value) for i, value in enumerate(values)))

        some = tuple(values[i] for i in places)
        return jvp(partial, some, tuple(value.flip(0) + 1 for value in some))

    torch.testing.assert_close(of(mine), of(theirs))


@BACKENDS
def test_a_tangent_of_the_kernel_survives_what_is_kept_of_it(backend: str) -> None:
    x, weight, tangent = draw(2, 4, 20, 20), draw(4, 1, 13, 13), draw(4, 1, 13, 13) + 1
    with on(backend):
        for _ in range(3):
            depthwise_conv2d(x, weight)
        for _ in range(3):
            with forward_ad.dual_level():
                y = forward_ad.unpack_dual(depthwise_conv2d(x, forward_ad.make_dual(weight, tangent)))
            torch.testing.assert_close(y.primal, plain(x, weight))
            assert y.tangent is not None
            torch.testing.assert_close(y.tangent, plain(x, tangent))


@pytest.mark.parametrize("name", ["expanded", "spectral", "cross"])
def test_a_tangent_survives_in_the_other_operators_too(name: str) -> None:
    mine, theirs, values = OPERATORS[name]
    x, *kernels = values
    for _ in range(3):
        mine(x, *kernels)
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(kernel, kernel.flip(0)) for kernel in kernels]
            actual, expected = (forward_ad.unpack_dual(f(x, *duals)).tangent for f in (mine, theirs))
        assert actual is not None
        torch.testing.assert_close(actual, expected)


@BACKENDS
def test_second_derivatives_agree_in_all_four_orders(backend: str) -> None:
    x, weight, bias = draw(1, 2, 5, 4), draw(2, 1, 3, 3), draw(2)

    def of(function: Function) -> Function:
        return lambda *t: function(*t).pow(3).sum()

    with on(backend):
        mine = of(depthwise_conv2d)
        for argument in (0, 1):
            expected = hessian(of(plain), argument)(x, weight, bias)
            for second, first in ((jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd), (jacrev, jacrev)):
                torch.testing.assert_close(second(first(mine, argument), argument)(x, weight, bias), expected)
        mixed = jacfwd(grad(mine, 0), 1)(x, weight, bias)
    torch.testing.assert_close(mixed, jacfwd(grad(of(plain), 0), 1)(x, weight, bias))


@pytest.mark.parametrize("name", ["expanded", "spectral", "box_rows", "summed_area", "stripes", "cross"])
def test_hessians_of_the_other_operators_agree(name: str) -> None:
    mine, theirs, values = OPERATORS[name]
    small = tuple(value[:1, ..., :4, :4] if i == 0 else value for i, value in enumerate(values))

    def of(function: Function) -> Tensor:
        return hessian(lambda kernel: function(small[0], kernel, *small[2:]).pow(3).sum())(small[1])

    torch.testing.assert_close(of(mine), of(theirs))


def test_tangents_come_in_batches() -> None:
    x, weight, tangents = draw(2, 3, 6, 5), draw(3, 1, 5, 3), draw(4, 3, 1, 5, 3)
    for function in (depthwise_conv2d, plain):
        pushed = vmap(lambda t, f=function: jvp(lambda w: f(x, w), (weight,), (t,))[1])(tangents)
        torch.testing.assert_close(pushed, torch.stack([plain(x, t) for t in tangents]))


def test_gradients_of_tangents_and_tangents_of_gradients_are_recorded() -> None:
    x, weight = draw(2, 3, 6, 5), draw(3, 1, 5, 3)
    results: list[Any] = []
    for function in (depthwise_conv2d, plain):
        w = weight.clone().requires_grad_()
        with forward_ad.dual_level():
            y = function(forward_ad.make_dual(x, x.flip(2)), w).pow(2)
            (g,) = torch.autograd.grad(y.sum(), w, create_graph=True)
            tangents = [forward_ad.unpack_dual(value).tangent for value in (y, g)]
            assert all(tangent is not None for tangent in tangents)
            results.append([*tangents, torch.autograd.grad(sum(t.sum() for t in tangents), w)[0]])  # type: ignore[union-attr]
    torch.testing.assert_close(*results)


def test_sharing_and_its_adjoint_push_tangents_on() -> None:
    cells, kernel = draw(2, 1, 5, 5), draw(2, 1, 7, 7)
    torch.testing.assert_close(
        jvp(lambda c: peripheral_kernel(c, GRID), (cells,), (cells + 1,))[1], peripheral_kernel(cells + 1, GRID)
    )
    torch.testing.assert_close(
        jvp(lambda k: sum_cells(k, GRID), (kernel,), (kernel + 1,))[1], sum_cells(kernel + 1, GRID)
    )


@pytest.mark.parametrize("name", ["depthwise_conv_forward", "depthwise_conv_grad_weight", "peripheral_conv_grad_input"])
def test_a_bare_operator_refuses_what_it_would_lose(name: str) -> None:
    x, weight, pair = draw(2, 3, 6, 5), draw(3, 1, 3, 3), [1, 1]
    rest = {
        "depthwise_conv_forward": (None, pair, pair, pair, ""),
        "depthwise_conv_grad_weight": ([3, 3], pair, pair, pair, ""),
        "peripheral_conv_grad_input": ([1, 1, 1], [2, 1, 2], "", ""),
    }[name]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        text = (
            "Expected a registered operator without forward-mode derivatives, but got an operand with a tangent: call"
        )
        with pytest.raises(InputError, match=text):
            getattr(torch.ops.widefield, name)(dual, x if name.endswith("weight") else weight, *rest)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [31, 3])
def test_tangents_exist_for_shapes_of_real_networks_in_single_precision(size: int, layout: torch.memory_format) -> None:
    x = draw(2, 32, 28, 28).float().contiguous(memory_format=layout)
    weight, tangent = draw(32, 1, size, size).float(), draw(32, 1, size, size).float() + 1
    y, dy = jvp(depthwise_conv2d, (x, weight), (x, tangent))
    torch.testing.assert_close(y, plain(x, weight), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(dy, plain(x, weight) + plain(x, tangent), rtol=1e-4, atol=1e-2)
