from __future__ import annotations

import re

import pytest
import torch
from support.random_statistics import randomise
from timm.utils.model import reparameterize_model
from torch import nn

from widefield import merge
from widefield._core.errors import InputError
from widefield.nn import ConvNorm2d, DepthwiseConv2d, ReparamConv2d
from widefield.reparam import Reparameterizable

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize(("large", "small"), [(3, None), (5, 5), (13, 5), (31, 5), (31, 1), (7, 3), (1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", LIMIT)
def test_the_merged_kernel_is_the_sum_of_its_branches(
    large: int, small: int | None, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    layer = randomise(ReparamConv2d(6, large, small, dtype=dtype)).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    x = torch.randn(2, 6, 14, 11, dtype=dtype).contiguous(memory_format=layout)
    branched = layer(x)
    report = merge(layer, x)
    assert layer.is_merged
    assert [name for name, _ in layer.named_parameters()] == ["merged.weight", "merged.bias"]
    assert report.relative_error < LIMIT[dtype]
    merged = layer(x)
    assert merged.is_contiguous(memory_format=layout)
    assert (merged - branched).abs().max() <= LIMIT[dtype] * branched.abs().max()
    assert report.parameters_after == 6 * large * large + 6


def test_the_merged_layer_keeps_type_place_mode_and_requires_grad() -> None:
    layer = randomise(ReparamConv2d(4, 7, 3).bfloat16()).requires_grad_(False)
    merge(layer)
    assert isinstance(layer, ReparamConv2d)
    assert layer.merged is not None
    assert layer.merged.weight.dtype == layer.merged.bias.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert not layer.merged.training
    trainable = randomise(ReparamConv2d(4, 7, 3))
    merge(trainable)
    assert all(parameter.requires_grad for parameter in trainable.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("depthwise", [True, False])
def test_conv_norm_merges_with_and_without_a_bias(bias: bool, depthwise: bool) -> None:
    layer = ConvNorm2d(4, 4, 3, stride=2, depthwise=depthwise, activation=nn.GELU)
    if bias:
        layer.conv.bias = nn.Parameter(torch.randn(4))
    randomise(layer.double())
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    expected = layer(x)
    merge(layer, x)
    assert layer.is_merged
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_merging_again_changes_nothing() -> None:
    for layer in (ReparamConv2d(4, 7, 3), ConvNorm2d(4, 4, 3)):
        randomise(layer)
        x = torch.randn(1, 4, 8, 8)
        merge(layer, x)
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        report = merge(layer, x)
        layer.reparameterize()
        assert report.unit_errors == ()
        assert report.worst_unit is None
        assert report.relative_error == 0
        after = layer.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_branch_that_was_folded_before_merges_the_same() -> None:
    layer = randomise(ReparamConv2d(4, 7, 3).double())
    assert isinstance(layer, ReparamConv2d)
    assert layer.large is not None
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    expected = layer(x)
    layer.large.reparameterize()
    layer.reparameterize()
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_training_mode_is_refused() -> None:
    for layer in (ReparamConv2d(4, 7, 3), ConvNorm2d(4, 4, 3)):
        text = "Expected a network in evaluation mode for merging, but got one in training mode (the module itself)"
        with pytest.raises(InputError, match=re.escape(text)):
            layer.reparameterize()
        assert not layer.is_merged


def test_the_layers_are_what_tools_look_for() -> None:
    layer = ReparamConv2d(4, 7)
    assert isinstance(layer, Reparameterizable)
    assert isinstance(DepthwiseConv2d(4, 3), nn.Conv2d)
    parent = randomise(nn.ModuleDict({"a": layer}).double())
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    expected = layer(x)
    theirs = reparameterize_model(parent)
    merge(layer)
    torch.testing.assert_close(theirs["a"](x), layer(x), rtol=0, atol=0)  # pyright: ignore[reportIndexIssue]
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_the_example_of_a_layer_is_larger_than_its_kernel() -> None:
    layer = ReparamConv2d(4, 7, dtype=torch.float64)
    example = layer.example_input()
    assert example.shape == (1, 4, 14, 14)
    assert example.dtype == torch.float64
    assert torch.equal(example, layer.example_input())


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((4, 3), "Expected an odd kernel size, but got 4: use 5."),
        (
            (7, 4),
            "Expected a small kernel of odd size up to 7, but got 4: "
            "use a smaller odd size, or None for the large kernel alone.",
        ),
        ((7, 9), "Expected a small kernel of odd size up to 7, but got 9: use"),
    ],
)
def test_sizes_without_a_common_centre_are_refused(sizes: tuple[int, int], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        ReparamConv2d(4, *sizes)


def test_a_depthwise_layer_has_the_parameters_of_its_torch_counterpart() -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv2d(4, (3, 5), stride=2, dilation=2)
    torch.manual_seed(0)
    theirs = nn.Conv2d(4, 4, (3, 5), stride=2, dilation=2, padding=(2, 4), groups=4)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = torch.randn(2, 4, 11, 13)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    ours.load_state_dict(theirs.state_dict())
