from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from widefield.ops import depthwise_conv1d, depthwise_conv2d, use_backend
from widefield.ops.depthwise_conv import maps, registration, shortcut

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": {"stride": (2, 1)},
    "dilated": {"dilation": (1, 2)},
    "valid": {"padding": 0},
    "all": {"stride": 2, "dilation": 2, "padding": (3, 2)},
}


def tensors(*, bias: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(3)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)

    return draw(2, 2, 5, 4), draw(2, 1, 3, 3), draw(2) if bias else None


@pytest.mark.parametrize("backend", ["reference", "aten", "channels_last", "fft", "dft", ""])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_first_and_second_derivatives_are_right(backend: str, geometry: str) -> None:
    def function(x: Tensor, weight: Tensor, b: Tensor | None) -> Tensor:
        if not backend:
            return depthwise_conv2d(x, weight, b, **GEOMETRIES[geometry])
        with use_backend(backend):
            return depthwise_conv2d(x, weight, b, **GEOMETRIES[geometry])

    inputs: Any = tensors(bias=geometry != "valid")
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_the_correlation_has_derivatives_by_the_other_backends() -> None:
    x, weight, _ = tensors()
    grad = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)

    def function(g: Tensor, image: Tensor) -> Tensor:
        return registration.grad_weight(g, image, weight.shape[2:], (1, 1), (1, 1), (1, 1), "")

    assert gradcheck(function, (grad, x))


def test_one_dimension_has_derivatives_too() -> None:
    x = torch.randn(2, 3, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda a, b: depthwise_conv1d(a, b, stride=2), (x, weight))
    assert gradgradcheck(lambda a, b: depthwise_conv1d(a, b, dilation=2), (x, weight))


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = tensors()
    assert bias is not None
    called: list[str] = []
    monkeypatch.setattr(shortcut, "_plans", {})
    monkeypatch.setattr(shortcut, "_is_direct", lambda *values: False)
    for name in ("grad_input", "grad_weight"):
        original = getattr(maps, name)
        monkeypatch.setattr(maps, name, lambda *a, _n=name, _o=original: called.append(_n) or _o(*a))
    torch.autograd.grad(depthwise_conv2d(x.detach(), weight, bias).sum(), weight)
    assert called == ["grad_weight"]
    torch.autograd.grad(depthwise_conv2d(x, weight.detach(), bias).sum(), (x, bias))
    assert called == ["grad_weight", "grad_input"]


# torch's tester itself calls deprecated functions of torch; the operators are what is checked.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", ["", "aten", "fft", "dft", "reference"])
def test_torch_finds_nothing_wrong_with_the_three_operators(backend: str, layout: torch.memory_format) -> None:
    x, weight, bias = tensors()
    assert bias is not None
    x = x.detach().float().contiguous(memory_format=layout).requires_grad_()
    weight, bias = (value.detach().float().requires_grad_() for value in (weight, bias))
    geometry = ([2, 1], [1, 1], [1, 1], backend)
    size = registration.forward(x, weight, bias, *geometry).shape
    grad = torch.randn(size).contiguous(memory_format=layout).requires_grad_()
    opcheck(registration.forward, (x, weight, bias, *geometry))
    opcheck(registration.forward, (x, weight, None, *geometry))
    opcheck(registration.grad_input, (grad, weight, list(x.shape), *geometry))
    opcheck(registration.grad_weight, (grad, x, list(weight.shape[2:]), *geometry))
