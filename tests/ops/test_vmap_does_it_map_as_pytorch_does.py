from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.func import grad, vmap

from widefield.ops import SharingGrid, decomposed_conv2d, depthwise_conv2d, peripheral_conv2d, use_backend

# The first forward derivative of a process lets torch prepare its own rules with a function that it deprecates.
pytestmark = pytest.mark.filterwarnings("default:.*torch.jit.script.*:FutureWarning")

GRID = SharingGrid.exponential(7, centre_radius=1)
Function = Callable[..., Tensor]


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
    geometry = {"padding": (weight.shape[2] // 2, weight.shape[3] // 2), **geometry}
    return F.conv2d(x, weight, bias, groups=weight.shape[0], **geometry)


def expanded(cells: Tensor) -> Tensor:
    sizes = torch.tensor(GRID.sizes)
    return cells.repeat_interleave(sizes, 2, output_size=7).repeat_interleave(sizes, 3, output_size=7)


PAIRS: dict[str, tuple[Function, Function, tuple[tuple[int, ...], ...]]] = {
    "dense": (depthwise_conv2d, plain, ((2, 3, 6, 5), (3, 1, 5, 3), (3,))),
    "strided": (
        lambda *t: depthwise_conv2d(*t, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        lambda *t: plain(*t, stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        ((2, 3, 6, 7), (3, 1, 3, 3), (3,)),
    ),
    "stripes": (
        lambda x, a, b: decomposed_conv2d(x, a, b, form="stripes"),
        lambda x, a, b: plain(x, a) + plain(x, b),
        ((2, 2, 6, 5), (2, 1, 5, 3), (2, 1, 3, 5)),
    ),
    "auto": (
        decomposed_conv2d,
        lambda x, a, b: plain(x, a) + plain(x, b),
        ((2, 2, 6, 5), (2, 1, 5, 3), (2, 1, 3, 5)),
    ),
    "peripheral": (
        lambda x, c, b: peripheral_conv2d(x, c, b, rows=GRID),
        lambda x, c, b: plain(x, expanded(c), b),
        ((2, 3, 6, 5), (3, 1, 5, 5), (3,)),
    ),
}


def drawn_dims(sizes: tuple[tuple[int, ...], ...], seed: int) -> tuple[tuple[int | None, ...], int]:
    random_ = random.Random(seed)
    dims = [random_.choice([None, *range(-len(size) - 1, len(size) + 1)]) for size in sizes]
    if all(dim is None for dim in dims):
        dims[seed % 3] = -1
    return tuple(dims), random_.choice([0, 1, -1, 3, -3])


def many(count: int, sizes: tuple[tuple[int, ...], ...], dims: tuple[int | None, ...]) -> list[Tensor]:
    pairs = zip(sizes, dims, strict=True)
    return [draw(*size) if dim is None else draw(count, *size).movedim(0, dim) for size, dim in pairs]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_any_operands_along_any_dimensions_in_and_out(name: str, seed: int, chunk_size: int | None) -> None:
    mine, theirs, sizes = PAIRS[name]
    dims, out = drawn_dims(sizes, seed)
    values = many(3, sizes, dims)
    actual, expected = (vmap(f, dims, out, chunk_size=chunk_size)(*values) for f in (mine, theirs))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(4))
def test_no_items_give_no_items_and_gradients_of_zero(name: str, seed: int) -> None:
    mine, theirs, sizes = PAIRS[name]
    dims, out = drawn_dims(sizes, seed)
    size = list(vmap(theirs, dims, out)(*many(1, sizes, dims)).shape)
    size[out] = 0
    values = [value.requires_grad_() for value in many(0, sizes, dims)]
    y = vmap(mine, dims, out)(*values)
    assert list(y.shape) == size
    for value, gradient in zip(values, torch.autograd.grad(y.sum(), values), strict=True):
        assert gradient.shape == value.shape
        assert not gradient.any()


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_mapped_along_any_dimension_and_maps_within_maps(name: str) -> None:
    mine, theirs, sizes = PAIRS[name]
    x, kernels = draw(4, *sizes[0]).movedim(0, -1), draw(2, *sizes[1]).movedim(0, 2)
    rest = [draw(*size) for size in sizes[2:]]

    def of(function: Function) -> list[Tensor]:
        def loss(image: Tensor, kernel: Tensor) -> Tensor:
            return function(image, kernel, *rest).pow(3).sum()

        return [
            vmap(vmap(grad(loss, argument), in_dims=(-1, None)), in_dims=(None, 2), out_dims=1)(x, kernels)
            for argument in (0, 1)
        ]

    for actual, expected in zip(of(mine), of(theirs), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("is_again", [False, True])
def test_gradients_are_taken_for_many_vectors_at_once(name: str, is_again: bool) -> None:
    mine, theirs, sizes = PAIRS[name]

    def of(function: Function) -> tuple[Tensor, ...]:
        inputs = [draw(*size).requires_grad_() for size in sizes]
        y = function(*inputs)
        vectors = draw(4, *y.shape).requires_grad_()
        firsts = torch.autograd.grad(y, inputs, vectors, is_grads_batched=True, create_graph=is_again)
        if not is_again:
            return firsts
        return torch.autograd.grad(sum(first.pow(2).sum() for first in firsts), [*inputs[:2], vectors])

    for actual, expected in zip(of(mine), of(theirs), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["dense", "strided", "peripheral"])
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_jacobians_of_autograd_are_vectorized(name: str, strategy: str) -> None:
    mine, theirs, sizes = PAIRS[name]
    inputs = tuple(draw(*size) for size in sizes)
    for actual, expected in zip(
        jacobian(mine, inputs, vectorize=True, strategy=strategy),  # type: ignore[no-untyped-call]
        jacobian(theirs, inputs),  # type: ignore[no-untyped-call]
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["dense", "peripheral"])
@pytest.mark.parametrize("outer", ["reverse-mode", "forward-mode"])
def test_hessians_of_autograd_are_vectorized(name: str, outer: str) -> None:
    mine, theirs, sizes = PAIRS[name]
    x, kernel, bias = draw(1, 1, 4, 3), draw(1, *sizes[1][1:]), draw(1)

    def of(function: Function, **how: Any) -> Any:
        return hessian(lambda a, k: function(a, k, bias).pow(3).sum(), (x, kernel), **how)  # type: ignore[no-untyped-call]

    for actual, expected in zip(of(mine, vectorize=True, outer_jacobian_strategy=outer), of(theirs), strict=True):
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["aten", "channels_last", "fft", "dft", "reference"])
def test_every_backend_is_mapped_and_takes_many_vectors(backend: str) -> None:
    x, weights = draw(2, 6, 5, 3, 4), draw(3, 1, 5, 3, 4)
    with use_backend(backend):
        mine = vmap(depthwise_conv2d, in_dims=(-1, -1))(x.movedim(3, 1), weights)
        inputs = draw(2, 3, 6, 5).requires_grad_(), draw(3, 1, 5, 3).requires_grad_()
        y = depthwise_conv2d(*inputs)
    torch.testing.assert_close(mine, vmap(plain, in_dims=(-1, -1))(x.movedim(3, 1), weights))
    vectors = draw(4, *y.shape)
    actual = torch.autograd.grad(y, inputs, vectors, is_grads_batched=True)
    expected = torch.autograd.grad(plain(*inputs), inputs, vectors, is_grads_batched=True)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
