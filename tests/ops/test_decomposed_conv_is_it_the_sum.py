from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from widefield._core.errors import InputError
from widefield.ops import decomposed_conv, decomposed_conv2d, depthwise_conv2d, use_backend


def branches(channels: int = 3, long: int = 11, short: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    sizes = ((long, short), (short, long), (short, short))
    return [torch.randn(channels, 1, *size, dtype=dtype, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("form", ["auto", "stripes", "cross"])
@pytest.mark.parametrize("count", [2, 3])
def test_every_form_is_the_sum_of_the_branches_with_its_gradients(form: decomposed_conv.Form, count: int) -> None:
    kernels, bias = branches()[:count], torch.randn(3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 14, 9, dtype=torch.float64, requires_grad=True)
    y = decomposed_conv2d(x, *kernels, bias=bias, form=form)
    expected = sum(depthwise_conv2d(x, kernel) for kernel in kernels) + bias[:, None, None]
    torch.testing.assert_close(y, expected)
    inputs = [x, *kernels, bias]
    mine, theirs = (torch.autograd.grad(out.sin().sum(), inputs) for out in (y, expected))
    for actual, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_the_faster_form_is_taken_by_the_predicted_times(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    real = decomposed_conv.depthwise_conv2d
    monkeypatch.setattr(
        decomposed_conv, "depthwise_conv2d", lambda x, w, *a: seen.append(w.shape[2:]) or real(x, w, *a)
    )
    kernels = [k.detach() for k in branches()]
    x = torch.randn(1, 3, 14, 9, dtype=torch.float64)
    monkeypatch.setattr(decomposed_conv, "_predicted", lambda x, kernel, passes: 1.0)
    decomposed_conv2d(x, *kernels)
    assert seen == [(11, 11)]
    monkeypatch.setattr(decomposed_conv, "_predicted", lambda x, kernel, passes: 4.0 if kernel == (11, 11) else 1.0)
    decomposed_conv2d(x, *kernels)
    assert seen[1:] == [(11, 5), (5, 11), (5, 5)]


def test_predictions_count_all_maps_only_where_gradients_are_wanted() -> None:
    x = torch.randn(1, 8, 28, 28)
    forward, training = (decomposed_conv._predicted(x, (5, 51), p) for p in (("forward",), ("forward", "grad_input")))
    assert 0 < forward < training < float("inf")


def test_a_forced_backend_decides_by_its_own_times() -> None:
    x = torch.randn(1, 8, 28, 28)
    free = decomposed_conv._predicted(x, (49, 49), ("forward",))
    with use_backend("aten"):
        assert decomposed_conv._predicted(x, (49, 49), ("forward",)) > free


def test_inference_meets_the_same_cross_again_until_a_branch_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = decomposed_conv.depthwise_conv2d
    monkeypatch.setattr(decomposed_conv, "depthwise_conv2d", lambda x, w, *a: seen.append(w) or real(x, w, *a))
    kernels = [k.detach().float() for k in branches()]
    x = torch.randn(1, 3, 14, 9)
    for _ in range(4):
        decomposed_conv2d(x, *kernels, form="cross")
    assert seen[2] is seen[3]
    for changed in kernels:
        changed.data[0, 0, 2, 2] += 1.0
        y = decomposed_conv2d(x, *kernels, form="cross")
        torch.testing.assert_close(y, decomposed_conv2d(x, *kernels, form="stripes"), rtol=1e-4, atol=1e-5)
        assert seen.pop() is not seen[3]
    kernels[0].requires_grad_()
    decomposed_conv2d(x, *kernels, form="cross").sum().backward()
    assert kernels[0].grad is not None


def test_stripes_that_lie_the_other_way_are_refused() -> None:
    tall, wide, small = branches()
    text = (
        "Expected a tall kernel (C, 1, M, n), a wide one (C, 1, n, M) and a small one, all of odd sizes up to M, "
        "but got 5x11, 11x5, 5x5: swap the stripes, or use odd sizes."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        decomposed_conv2d(torch.ones(1, 3, 5, 5, dtype=torch.float64), wide, tall, small)
    with pytest.raises(InputError, match="but got 'star': did you mean 'stripes'"):
        decomposed_conv2d(torch.ones(1, 3, 5, 5), tall, wide, form="star")  # type: ignore[arg-type]
