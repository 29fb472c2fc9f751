from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from widefield.nn.response_norm import GlobalResponseNorm


def drawn(channels: int, dtype: torch.dtype = torch.float64) -> GlobalResponseNorm:
    torch.manual_seed(0)
    layer = GlobalResponseNorm(channels, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def test_the_layer_is_its_definition_image_by_image() -> None:
    layer, x = drawn(6), torch.randn(3, 5, 4, 6, dtype=torch.float64)
    assert layer.beta is not None
    gamma, beta = (parameter.detach().numpy().ravel() for parameter in (layer.gamma, layer.beta))
    for image, y in zip(x.numpy(), layer(x).detach().numpy(), strict=True):
        energy = np.sqrt((image**2).sum((0, 1)))
        expected = (gamma * energy / (energy.mean() + 1e-6) + 1) * image + beta
        np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-13)


def test_it_starts_as_the_identity_and_learns_from_there() -> None:
    layer, x = GlobalResponseNorm(6), torch.randn(2, 5, 4, 6)
    y = layer(x)
    assert torch.equal(y, x)
    (y * torch.randn(y.shape)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().min() > 0 for parameter in layer.parameters())
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "gamma": (1, 1, 1, 6),
        "beta": (1, 1, 1, 6),
    }


def test_without_beta_it_differs_by_beta() -> None:
    layer, x = drawn(6), torch.randn(2, 5, 4, 6, dtype=torch.float64)
    expected, beta = layer(x), layer.beta
    assert beta is not None
    layer.beta = None
    torch.testing.assert_close(layer(x) + beta, expected, rtol=1e-13, atol=1e-13)
    assert list(layer.state_dict()) == ["gamma"]


def test_its_derivatives_are_right_and_finite_where_a_channel_is_zero() -> None:
    layer = drawn(3)
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    x[..., 1] = 0
    for dead in (x, torch.zeros_like(x)):
        y = layer(dead.requires_grad_())
        y.sum().backward()
        assert torch.isfinite(y).all()
        assert dead.grad is not None
        assert torch.isfinite(dead.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_input_keeps_its_type(dtype: torch.dtype) -> None:
    layer, x = drawn(6, torch.float32), torch.randn(2, 9, 8, 6)
    with torch.autocast("cpu", dtype):
        y = layer(x.to(dtype))
    assert y.dtype == dtype
    # A sum of two terms, each rounded to about three digits.
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.06)


def test_it_has_no_values_on_the_meta_device() -> None:
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in GlobalResponseNorm(6).parameters())
