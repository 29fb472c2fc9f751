from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from widefield._core.errors import InputError
from widefield.nn import DepthwiseConv2d
from widefield.ops import depthwise_conv1d, depthwise_conv2d, explain

X, WEIGHT = torch.ones(1, 3, 8, 8), torch.ones(3, 1, 3, 3)

REFUSED: list[tuple[tuple[Tensor, ...], dict[str, Any], str]] = [
    ((X[0], WEIGHT), {}, "Expected an input (N, C, H, W), but got 3 dimensions (3, 8, 8): add the missing ones."),
    (
        (X, WEIGHT[:, 0]),
        {},
        "Expected a weight (C, 1, K_h, K_w), but got shape (3, 3, 3): use one kernel for each channel, "
        "as nn.Conv2d(C, C, K, groups=C) holds them.",
    ),
    ((X, torch.ones(3, 3, 3, 3)), {}, "Expected a weight (C, 1, K_h, K_w), but got shape (3, 3, 3, 3): use one"),
    (
        (X, WEIGHT[:2]),
        {},
        "Expected a weight with one kernel for each of the input's 3 channels, but got 2 kernels: "
        "give both the same number of channels.",
    ),
    (
        (X, WEIGHT, torch.ones(2)),
        {},
        "Expected a bias of shape (3,), but got shape (2,): give one number for each channel.",
    ),
    (
        (X.int(), WEIGHT.int()),
        {},
        "Expected a floating-point input, but got torch.int32: convert it, for instance with x.float().",
    ),
    (
        (X, WEIGHT.double()),
        {},
        "Expected input, weight and bias of one dtype, but got torch.float32, torch.float64: "
        "convert them to one, or use autocast.",
    ),
    (
        (X, WEIGHT, torch.ones(3, dtype=torch.float64)),
        {},
        "but got torch.float32, torch.float32, torch.float64: convert them to one, or use autocast.",
    ),
    (
        (X, WEIGHT.to("meta")),
        {},
        "Expected input, weight and bias on one device, but got cpu, meta: move them to one.",
    ),
    (
        (X, WEIGHT),
        {"stride": 0},
        "Expected stride of at least 1, one whole number or two, but got 0: "
        "give (vertical, horizontal) or one number for both.",
    ),
    ((X, WEIGHT), {"stride": 1.5}, "Expected stride of at least 1, one whole number or two, but got 1.5: give"),
    ((X, WEIGHT), {"stride": (1, 2, 3)}, "Expected stride of at least 1, one whole number or two, but got (1, 2, 3):"),
    ((X, WEIGHT), {"dilation": (1, 0)}, "Expected dilation of at least 1, one whole number or two, but got (1, 0):"),
    ((X, WEIGHT), {"padding": -1}, "Expected padding of at least 0, one whole number or two, but got -1:"),
    ((X, WEIGHT), {"padding": "valid"}, "Expected padding of at least 0, one whole number or two, but got 'valid':"),
    (
        (X, torch.ones(3, 1, 4, 3)),
        {},
        'Expected an odd kernel size for padding "same", but got 4x3: use an odd size or give the padding as numbers.',
    ),
    (
        (X, torch.ones(3, 1, 5, 5)),
        {"padding": 0, "dilation": 2},
        "Expected a padded image at least as large as the kernel, but got an image of 8x8 with padding (0, 0) "
        'and a kernel that spans 9x9: use more padding, for instance "same".',
    ),
]


@pytest.mark.parametrize(("tensors", "options", "text"), REFUSED)
def test_what_does_not_fit_is_named_with_the_way_out(
    tensors: tuple[Tensor, ...], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        depthwise_conv2d(*tensors, **options)


def test_an_even_kernel_with_an_even_span_has_a_same_padding() -> None:
    assert depthwise_conv2d(X, torch.ones(3, 1, 4, 4), dilation=2).shape == X.shape


def test_sequences_of_another_rank_are_refused_in_their_own_words() -> None:
    with pytest.raises(InputError, match=re.escape("Expected an input (N, C, L), but got 4 dimensions (1, 3, 8, 8)")):
        depthwise_conv1d(X, WEIGHT[:, :, 0])
    text = "Expected a weight (C, 1, K), but got shape (3, 1, 3, 3): use one kernel for each channel, as nn.Conv1d"
    with pytest.raises(InputError, match=re.escape(text)):
        depthwise_conv1d(X[:, :, 0], WEIGHT)


def test_the_layer_refuses_an_even_kernel_when_it_runs() -> None:
    with pytest.raises(InputError, match="Expected an odd kernel size for padding"):
        DepthwiseConv2d(3, 4)(X)


def test_explain_refuses_what_has_no_same_convolution() -> None:
    with pytest.raises(InputError, match=re.escape("Expected positive sizes, but got (0, 3, 8, 8, 3, 3): give N, C,")):
        explain(0, 3, 8, 8, 3)
    text = 'Expected an odd kernel size for "same" padding, but got 4x3: use 5x3.'
    with pytest.raises(InputError, match=re.escape(text)):
        explain(1, 3, 8, 8, (4, 3))
