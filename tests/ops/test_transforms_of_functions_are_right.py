from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from widefield.ops import SharingGrid, depthwise_conv2d, peripheral_conv2d, use_backend

BACKENDS = pytest.mark.parametrize("backend", ["", "aten", "fft", "dft", "reference"])


def draw(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)


def one_by_one(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    return torch.stack([function(*values) for values in zip(*batches, strict=True)])


@BACKENDS
def test_gradients_of_each_sample_equal_those_taken_one_by_one(backend: str) -> None:
    x, weight, bias = draw(4, 2, 3, 9, 8), draw(3, 1, 5, 5), draw(3)

    def loss(w: Tensor, b: Tensor, image: Tensor) -> Tensor:
        with use_backend(backend) if backend else nullcontext():
            return depthwise_conv2d(image, w, b, stride=(2, 1)).sin().sum()

    for argument in (0, 1, 2):
        mine = vmap(grad(loss, argument), (None, None, 0))(weight, bias, x)
        theirs = one_by_one(lambda image, a=argument: grad(loss, a)(weight, bias, image), x)
        torch.testing.assert_close(mine, theirs)


@BACKENDS
def test_a_batch_of_kernels_is_a_batch_of_convolutions(backend: str) -> None:
    x, weights, biases = draw(2, 3, 7, 8), draw(4, 3, 1, 3, 5), draw(4, 3)

    def function(w: Tensor, b: Tensor) -> Tensor:
        with use_backend(backend) if backend else nullcontext():
            return depthwise_conv2d(x, w, b)

    torch.testing.assert_close(vmap(function)(weights, biases), one_by_one(function, weights, biases))
    moved = weights.movedim(0, 2)
    torch.testing.assert_close(
        vmap(lambda w: depthwise_conv2d(x, w), in_dims=2)(moved), one_by_one(lambda w: depthwise_conv2d(x, w), weights)
    )
    both = draw(4, 2, 3, 7, 8)
    torch.testing.assert_close(
        vmap(lambda image, w: depthwise_conv2d(image, w))(both, weights),
        one_by_one(lambda image, w: depthwise_conv2d(image, w), both, weights),
    )


def test_second_derivatives_of_each_sample_exist() -> None:
    x, weight = draw(3, 1, 2, 5, 4), draw(2, 1, 3, 3)

    def energy(w: Tensor, image: Tensor) -> Tensor:
        return depthwise_conv2d(image, w).pow(3).sum()

    hessians = vmap(jacrev(grad(energy)), (None, 0))(weight, x)
    expected = one_by_one(lambda image: torch.autograd.functional.hessian(lambda w: energy(w, image), weight), x)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(hessians, expected)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kernel_size", [3, 31])
def test_torchs_counter_counts_two_operations_for_each_tap(kernel_size: int, order: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = torch.randn(2, 8, 56, 56, requires_grad=True), torch.randn(8, 1, kernel_size, kernel_size)
    weight.requires_grad_()
    if order == "after":
        depthwise_conv2d(x, weight)
    one_map = 2 * 2 * 8 * 56 * 56 * kernel_size**2
    with FlopCounterMode(display=False) as counter:
        y = depthwise_conv2d(x, weight)
        assert counter.get_total_flops() == one_map
        y.sum().backward()
    assert counter.get_total_flops() == 3 * one_map


def test_the_counter_works_on_the_meta_device() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        depthwise_conv2d(torch.empty(1, 4, 32, 32, device="meta"), torch.empty(4, 1, 13, 13, device="meta"))
    assert counter.get_total_flops() == 2 * 4 * 32 * 32 * 169


@pytest.mark.parametrize("form", [None, "expanded", "spectral"])
def test_a_peripheral_kernel_counts_as_the_dense_one(form: str | None) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    grid = SharingGrid.exponential(31, centre_radius=2)
    x = torch.randn(2, 4, 20, 20, requires_grad=True)
    cells = torch.randn(4, 1, grid.parameters, grid.parameters, requires_grad=True)
    one_map = 2 * 2 * 4 * 20 * 20 * 31**2
    y = peripheral_conv2d(x, cells, rows=grid, form=form)
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * one_map
    with FlopCounterMode(display=False) as counter:
        peripheral_conv2d(x, cells, rows=grid, form=form)
    assert counter.get_total_flops() == one_map
