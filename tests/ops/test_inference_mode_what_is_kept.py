from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from widefield.nn import DepthwiseConv2d
from widefield.ops import SharingGrid, decomposed_conv2d, depthwise_conv2d, peripheral_conv2d, use_backend, weight_cache

GRID = SharingGrid.exponential(21, centre_radius=2)
MODES = {"normal": torch.no_grad, "inference": torch.inference_mode, "recording": torch.enable_grad}
Mode = Callable[[], AbstractContextManager[object]]


def dense(backend: str) -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor) -> Tensor:
        with use_backend(backend):
            return depthwise_conv2d(x, weight)

    return run


OPERATORS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "fft": (dense("fft"), ((4, 1, 21, 21),)),
    "dft": (dense("dft"), ((4, 1, 21, 21),)),
    "clipped": (dense("dft"), ((4, 1, 51, 51),)),
    "cross": (lambda x, *k: decomposed_conv2d(x, *k, form="cross"), ((4, 1, 21, 5), (4, 1, 5, 21), (4, 1, 3, 3))),
    "expanded": (
        lambda x, c: peripheral_conv2d(x, c, rows=GRID, form="expanded"),
        ((4, 1, GRID.parameters, GRID.parameters),),
    ),
    "spectral": (
        lambda x, c: peripheral_conv2d(x, c, rows=GRID, form="spectral"),
        ((4, 1, GRID.parameters, GRID.parameters),),
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("born", ["normal", "inference"])
def test_every_call_in_every_mode_gives_the_same(name: str, born: str) -> None:
    function, sizes = OPERATORS[name]
    x = torch.randn(2, 4, 18, 20)
    with MODES[born]():
        kernels = [torch.randn(size) for size in sizes]
    with torch.no_grad():
        expected = function(x, *(kernel.clone() for kernel in kernels))
    for mode in ("inference", "inference", "inference", "normal", "recording", "inference", "normal", "recording"):
        with MODES[mode]():
            torch.testing.assert_close(function(x, *kernels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_inference_mode_derived_serves_a_call_that_records_gradients(name: str) -> None:
    function, sizes = OPERATORS[name]
    kernels, x = [torch.randn(size) for size in sizes], torch.randn(2, 4, 18, 20, requires_grad=True)
    with torch.inference_mode():
        for _ in range(3):
            function(x, *kernels)
    for wanted in (x, nn.Parameter(kernels[0])):
        values = [x, *kernels] if wanted is x else [x.detach(), wanted, *kernels[1:]]
        (mine,) = torch.autograd.grad(function(*values).square().sum(), wanted)
        copies = [value.detach().clone().requires_grad_(value is wanted) for value in values]
        theirs = torch.autograd.grad(function(*copies).square().sum(), [c for c in copies if c.requires_grad])[0]
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["fft", "clipped", "expanded", "spectral", "cross"])
@pytest.mark.parametrize("born", ["normal", "inference"])
def test_forms_are_kept_in_inference_mode(name: str, born: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, sizes = OPERATORS[name]
    made: list[Tensor] = []
    original = weight_cache._made
    monkeypatch.setattr(weight_cache, "_made", lambda make: made.append(original(make)) or made[-1])
    with MODES[born]():
        kernels = [torch.randn(size) for size in sizes]
    with torch.inference_mode():
        x = torch.randn(2, 4, 18, 20)
        for _ in range(3):
            function(x, *kernels)
        count = len(made)
        assert count > 0
        for _ in range(4):
            function(x, *kernels)
        # A form that is itself a kernel gets spectra of its own one call later.
        assert len(made) <= count + 1
    assert not any(form.is_inference() for form in made)


@pytest.mark.parametrize("name", ["fft", "dft", "clipped", "expanded", "spectral", "cross"])
def test_a_kernel_of_inference_mode_that_changes_is_derived_anew(name: str) -> None:
    function, sizes = OPERATORS[name]
    with torch.inference_mode():
        x, kernels = torch.randn(2, 4, 18, 20), [torch.randn(size) for size in sizes]
        for change in (
            lambda: kernels[0].neg_(),
            lambda: kernels[-1].mul_(2),
            lambda: kernels[0].copy_(kernels[0].flip(2, 3)),
        ):
            for _ in range(3):
                function(x, *kernels)
            change()
            fresh = function(x, *(kernel.clone() for kernel in kernels))
            torch.testing.assert_close(function(x, *kernels), fresh, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["built", "loaded"])
def test_a_layer_of_inference_mode_runs_again_and_again(where: str) -> None:
    other = DepthwiseConv2d(4, 31)
    x = torch.randn(1, 4, 24, 24)
    layer = DepthwiseConv2d(4, 31)
    with torch.inference_mode(), use_backend("fft"):
        if where == "built":
            layer = DepthwiseConv2d(4, 31)
        for _ in range(3):
            layer(x)
        layer.load_state_dict(other.state_dict())
        expected = other(x)
        for _ in range(3):
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_a_kernel_and_its_transpose_are_told_apart() -> None:
    weight, x = torch.randn(4, 1, 15, 15), torch.randn(1, 4, 20, 20)
    with torch.no_grad(), use_backend("fft"):
        for kernel in (weight, weight, weight, weight.mT, weight.mT, weight, weight.mT):
            expected = depthwise_conv2d(x, kernel.clone())
            torch.testing.assert_close(depthwise_conv2d(x, kernel), expected, rtol=1e-4, atol=1e-4)
