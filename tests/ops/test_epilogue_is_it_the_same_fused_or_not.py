from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from widefield._core.errors import InputError
from widefield.ops import depthwise_conv2d, use_backend
from widefield.ops.depthwise_conv import epilogue

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, None: lambda y: y}


@pytest.mark.parametrize("backend", ["", "aten", "dft", "triton"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("kernel_size", [3, 13])
def test_residual_and_activation_follow_the_convolution(
    backend: str, activation: epilogue.Activation | None, with_residual: bool, kernel_size: int, monkeypatch
) -> None:
    fusions: list[str | None] = []
    real = epilogue.convolve
    monkeypatch.setattr(epilogue, "convolve", lambda *a, **k: fusions.append(k["activation"]) or real(*a, **k))
    device = "cuda" if torch.cuda.is_available() and backend == "triton" else "cpu"
    x, weight = torch.randn(2, 3, 9, 8, device=device), torch.randn(3, 1, kernel_size, kernel_size, device=device)
    bias, residual = torch.randn(3, device=device), torch.randn(2, 3, 9, 8, device=device) if with_residual else None
    expected = F.conv2d(x, weight, bias, padding=kernel_size // 2, groups=3)
    expected = ACTIVATIONS[activation](expected if residual is None else expected + residual)
    with use_backend(backend) if backend else nullcontext():
        for _ in range(2):
            y = depthwise_conv2d(x, weight, bias, residual=residual, activation=activation)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert len(fusions) == (2 if backend == "triton" and (with_residual or activation) else 0)


def test_gradients_flow_through_residual_and_activation() -> None:
    x, residual = torch.randn(2, 1, 3, 9, 8, dtype=torch.float64, requires_grad=True).unbind(0)
    weight = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    y = depthwise_conv2d(x, weight, residual=residual, activation="gelu")
    expected = F.gelu(F.conv2d(x, weight, padding=2, groups=3) + residual)
    mine, theirs = (torch.autograd.grad(out.sum(), (x, weight, residual)) for out in (y, expected))
    for actual, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_what_does_not_fit_is_refused(backend: str) -> None:
    x, weight = torch.ones(1, 3, 6, 6), torch.ones(3, 1, 3, 3)
    for _ in range(2):
        with use_backend(backend), pytest.raises(InputError, match=r"Expected a residual of the output's shape \(1, 3"):
            depthwise_conv2d(x, weight, residual=torch.ones(1, 3, 5, 6))
        with use_backend(backend), pytest.raises(InputError, match="but got 'gelo': did you mean 'gelu'"):
            depthwise_conv2d(x, weight, activation="gelo")  # type: ignore[arg-type]
