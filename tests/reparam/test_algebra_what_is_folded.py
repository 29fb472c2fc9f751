from __future__ import annotations

import re

import pytest
import torch
from support.random_statistics import randomise
from torch import nn

from widefield._core.errors import InputError
from widefield.reparam import affine_of_batch_norm, embed_kernel, fold_after, fold_before, folded_after


def double(*size: int) -> torch.Tensor:
    return torch.randn(size, dtype=torch.float64)


def test_a_batch_norm_is_a_scale_and_a_shift() -> None:
    norm = randomise(nn.BatchNorm1d(5).double())
    x = double(7, 5)
    scale, shift = affine_of_batch_norm(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]
    torch.testing.assert_close(scale * x + shift, norm(x))
    scale, shift = affine_of_batch_norm(torch.zeros(2), torch.full((2,), 3.0), None, None, 1.0)
    assert scale.tolist() == [0.5, 0.5]
    assert shift.tolist() == [0, 0]
    assert scale.dtype == torch.float64


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 1, bias=False), nn.Conv2d(3, 5, 2, padding="valid")], ids=str
)
def test_a_norm_before_an_unpadded_convolution_folds_into_it(layer: nn.Conv2d) -> None:
    norm = randomise(nn.BatchNorm2d(3).double())
    layer = layer.double()
    x = double(2, 3, 6, 6)
    expected = layer(norm(x))
    fold_before(norm, layer)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_a_norm_before_a_linear_layer_folds_into_it() -> None:
    norm, layer = randomise(nn.BatchNorm1d(3).double()), nn.Linear(3, 4).double().requires_grad_(False)
    x = double(6, 3)
    expected = layer(norm(x))
    fold_before(norm, layer)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert not layer.weight.requires_grad
    assert not layer.bias.requires_grad


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), "padding (1, 1) and 1 groups"),
        (nn.Conv2d(4, 4, 3, padding="same"), "padding same and 1 groups"),
        (nn.Conv2d(4, 4, 1, groups=2), "padding (0, 0) and 2 groups"),
    ],
)
def test_a_norm_before_padding_or_groups_is_refused(layer: nn.Conv2d, text: str) -> None:
    before = layer.weight.detach().clone()
    full = f"Expected a convolution without padding and groups after the norm, but got {text}: keep that norm."
    with pytest.raises(InputError, match=re.escape(full)):
        fold_before(nn.BatchNorm2d(4), layer)
    assert torch.equal(layer.weight, before)


def test_what_is_no_affine_norm_is_refused() -> None:
    for norm in (nn.GroupNorm(1, 4), nn.BatchNorm2d(4, track_running_stats=False)):
        text = (
            f"Expected a BatchNorm with running statistics, but got {type(norm).__name__}: "
            "only such a norm is an affine map that can be folded."
        )
        for action in (
            lambda n=norm: fold_after(nn.Conv2d(4, 4, 1), n),
            lambda n=norm: fold_before(n, nn.Linear(4, 4)),
        ):
            with pytest.raises(InputError, match=re.escape(text)):
                action()


def test_folding_after_leaves_both_modules_as_they_are_unless_asked() -> None:
    layer, norm = nn.Conv2d(3, 4, 1, bias=False), randomise(nn.BatchNorm2d(4))
    before = layer.weight.detach().clone()
    weight, bias = folded_after(layer, norm)
    assert weight.dtype == bias.dtype == torch.float64
    assert torch.equal(layer.weight, before)
    assert layer.bias is None
    identity = folded_after(layer, nn.Identity())
    assert torch.equal(identity[0], before.double())
    assert not identity[1].any()


def test_a_small_kernel_lies_in_the_centre() -> None:
    kernel = torch.arange(1.0, 4.0).reshape(1, 1, 1, 3)
    assert embed_kernel(kernel, (3, 5))[0, 0].tolist() == [[0] * 5, [0, 1, 2, 3, 0], [0] * 5]
    text = (
        "Expected a kernel that fits the centre of 4x5, but got one of 1x3: "
        "use sizes that are both odd or both even, the smaller one first."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        embed_kernel(kernel, (4, 5))
    with pytest.raises(InputError, match=re.escape("fits the centre of 1x1, but got one of 1x3")):
        embed_kernel(kernel, (1, 1))
