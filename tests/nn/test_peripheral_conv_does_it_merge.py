from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_statistics import randomise
from torch import Tensor, nn

from widefield import merge
from widefield._core.errors import InputError
from widefield.nn.peripheral_conv import POSITIONS, PeripheralConv2d
from widefield.reparam import Reparameterizable

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}
PUBLISHED = [(13, 2), (47, 2), (49, 2), (51, 2), (13, 3), (67, 3), (69, 3), (101, 3)]


def make(channels: int = 3, kernel_size: int = 7, **options: Any) -> PeripheralConv2d:
    torch.manual_seed(0)
    layer = randomise(PeripheralConv2d(channels, kernel_size, **options))
    for parameter in layer.parameters():
        # Of order 1 in the output, whatever the kernel.
        nn.init.normal_(parameter, std=1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    return layer


def embedding_for(layer: PeripheralConv2d) -> Tensor | None:
    if layer.position == "none":
        return None
    like, size = next(layer.parameters()), (layer.channels, layer.kernel_size, layer.kernel_size)
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=like.dtype)


def names(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters()]


def distance(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def check_merge(layer: PeripheralConv2d, x: Tensor, layout: torch.memory_format = torch.contiguous_format) -> None:
    """In one step, and in two with the embedding left for later."""
    limit, h = LIMIT[x.dtype], embedding_for(layer)
    branched = layer(x, h)
    layer.reparameterize()
    assert layer.is_merged
    assert names(layer) == [*(["weight"] if h is not None else []), "merged.weight", "merged.bias"]
    assert distance(layer(x, h), branched) < limit
    layer.reparameterize(h)
    expected = ["merged.weight", "merged.bias", *(["merged_border.weight"] if layer.position == "border" else [])]
    assert names(layer) == expected
    for merged in (layer(x), layer(x, h)):
        assert merged.is_contiguous(memory_format=layout)
        assert distance(merged, branched) < limit


@pytest.mark.parametrize(("kernel_size", "radius"), PUBLISHED)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", LIMIT)
def test_every_published_kernel_merges(
    kernel_size: int, radius: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = torch.randn(2, 3, 14, 11, generator=torch.Generator().manual_seed(2), dtype=dtype)
    x = x.contiguous(memory_format=layout)
    for position in POSITIONS:
        for norm in (True, False):
            layer = make(3, kernel_size, centre_radius=radius, position=position, norm=norm, dtype=dtype)
            check_merge(layer, x, layout)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_layer_merges(data: st.DataObject) -> None:
    kernel_size = 2 * data.draw(st.integers(0, 12)) + 1
    small = data.draw(st.sampled_from([None, *range(1, kernel_size + 1, 2)]))
    layer = make(
        data.draw(st.integers(1, 3)),
        kernel_size,
        centre_radius=data.draw(st.integers(0, 4)),
        small_kernel_size=small,
        norm=data.draw(st.booleans()),
        position=data.draw(st.sampled_from(POSITIONS)),
        dtype=torch.float64,
    )
    size = data.draw(st.integers(1, 3)), layer.channels, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    check_merge(layer, torch.randn(size, dtype=torch.float64))


@pytest.mark.parametrize("position", POSITIONS)
def test_the_embedding_is_folded_in_one_step_too(position: Any) -> None:
    layer, other = (make(position=position, norm=True, dtype=torch.float64) for _ in range(2))
    x, h = torch.randn(2, 3, 9, 8, dtype=torch.float64), embedding_for(layer)
    expected = layer(x, h)
    layer.reparameterize(h)
    assert "weight" not in names(layer)
    assert distance(layer(x), expected) < 1e-12
    # Images of another size have other borders.
    large = torch.randn(1, 3, 21, 5, dtype=torch.float64)
    assert distance(layer(large), other(large, h)) < 1e-12


@pytest.mark.parametrize("position", POSITIONS)
def test_the_certificate_of_a_layer_alone_is_exact_and_merging_again_changes_nothing(position: Any) -> None:
    layer = make(position=position)
    assert isinstance(layer, Reparameterizable)
    report = merge(layer)
    assert report.relative_error < 1e-5
    assert report.example_shape == (1, 3, 14, 14)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert merge(layer).relative_error == 0
    layer.reparameterize()
    assert list(layer.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    h = embedding_for(layer)
    layer.reparameterize(h)
    whole = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.reparameterize(h)
    layer.reparameterize()
    assert list(layer.state_dict()) == list(whole)
    assert all(torch.equal(value, whole[name]) for name, value in layer.state_dict().items())


def test_a_branch_that_was_folded_before_merges_the_same() -> None:
    layer = make(norm=True, dtype=torch.float64)
    assert layer.small is not None
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    expected = layer(x)
    merge(layer.small, x)
    layer.reparameterize()
    assert distance(layer(x), expected) < 1e-12


@pytest.mark.parametrize("position", POSITIONS)
def test_the_merged_layer_keeps_type_mode_and_requires_grad(position: Any) -> None:
    for trainable in (True, False):
        layer = make(position=position).bfloat16().requires_grad_(trainable)
        for h in (None, embedding_for(layer)):
            layer.reparameterize(h)
            assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
            assert all(parameter.requires_grad is trainable for parameter in layer.parameters())
            assert not any(module.training for module in layer.modules())


def test_training_mode_is_refused() -> None:
    layer = make().train()
    text = "Expected a network in evaluation mode for merging, but got one in training mode (the module itself)"
    with pytest.raises(InputError, match=re.escape(text)):
        layer.reparameterize()
    assert not layer.is_merged
