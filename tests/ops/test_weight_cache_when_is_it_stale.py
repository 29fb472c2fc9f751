from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from widefield.nn import DepthwiseConv2d
from widefield.ops import depthwise_conv2d, use_backend, weight_cache


class Counted:
    def __init__(self, weight: Tensor) -> None:
        self.weight, self.calls = weight, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.weight.detach() * 2


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 1, 5, 5))


def test_a_form_is_kept_from_the_second_call_on(weight: nn.Parameter) -> None:
    make = Counted(weight)
    for _ in range(5):
        torch.testing.assert_close(weight_cache.derived(weight, "double", make), weight.detach() * 2)
    assert make.calls == 2
    weight_cache.derived(weight, "other", make)
    assert make.calls == 3


def test_a_training_step_keeps_nothing(weight: nn.Parameter) -> None:
    make = Counted(weight)
    for _ in range(4):
        weight_cache.derived(weight, "double", make)
        with torch.no_grad():
            weight.add_(1)
    assert make.calls == 4


@pytest.mark.parametrize("change", ["in place", "through data", "sign through data", "flip through data", "one value"])
def test_a_changed_kernel_is_derived_anew(weight: nn.Parameter, change: str) -> None:
    make = Counted(weight)
    for _ in range(3):
        weight_cache.derived(weight, "double", make)
    if change == "in place":
        with torch.no_grad():
            weight.mul_(3)
    elif change == "through data":
        weight.data.copy_(torch.randn(4, 1, 5, 5))
    elif change == "sign through data":
        weight.data.neg_()
    elif change == "flip through data":
        weight.data.copy_(weight.data.flip(2, 3))
    else:
        weight.data[3, 0, 4, 4] += 1e-3
    for _ in range(3):
        torch.testing.assert_close(weight_cache.derived(weight, "double", make), weight.detach() * 2)


def test_views_of_one_kernel_are_told_apart_and_only_so_many_forms_are_kept(weight: nn.Parameter) -> None:
    whole, part = weight.detach(), weight.detach()[:, :, 1:4, 1:4]
    for view in (whole, part, whole, part, whole, part):
        make = Counted(view)
        torch.testing.assert_close(weight_cache.derived(view, "double", make), view * 2)
    for key in range(3 * weight_cache.MOST_FORMS):
        weight_cache.derived(weight, key, Counted(weight))
    entry = weight_cache._entries[weight]
    assert len(entry.forms) == weight_cache.MOST_FORMS


def test_nothing_outlives_the_kernel() -> None:
    weight = torch.randn(2, 1, 3, 3)
    weight_cache.derived(weight, "double", Counted(weight))
    before = len(weight_cache._entries)
    del weight
    gc.collect()
    assert len(weight_cache._entries) == before - 1


def test_tensors_of_inference_mode_have_no_version_and_are_kept_by_their_values() -> None:
    with torch.inference_mode():
        weight = torch.randn(2, 1, 3, 3)
        make = Counted(weight)
        for _ in range(4):
            form = weight_cache.derived(weight, "double", make)
        assert make.calls == 2
        assert not form.is_inference()
        weight.add_(1)
        torch.testing.assert_close(weight_cache.derived(weight, "double", make), weight * 2)
    torch.testing.assert_close(weight_cache.derived(weight, "double", make), weight * 2)
    assert make.calls == 3


@pytest.mark.parametrize("backend", ["fft", "dft"])
def test_a_layer_sees_its_weight_change_between_two_inferences(backend: str) -> None:
    layer = DepthwiseConv2d(4, 31)
    x = torch.randn(2, 4, 20, 20)

    def both() -> tuple[Tensor, Tensor]:
        with torch.no_grad(), use_backend(backend):
            mine = layer(x)
        with torch.no_grad(), use_backend("reference"):
            return mine, layer(x)

    for change in (lambda: None, lambda: None, lambda: layer.weight.data.mul_(-2), lambda: None):
        change()
        for _ in range(3):
            torch.testing.assert_close(*both(), rtol=1e-4, atol=1e-4)
    with torch.inference_mode(), use_backend(backend):
        inside = layer(x)
    y = depthwise_conv2d(x, layer.weight, layer.bias)
    torch.testing.assert_close(inside, y.detach(), rtol=1e-4, atol=1e-4)
    y.sum().backward()
