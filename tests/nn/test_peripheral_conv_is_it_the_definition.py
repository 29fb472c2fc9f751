from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from support.random_statistics import randomise
from torch import Tensor
from torch.func import functional_call

from widefield._core.errors import InputError
from widefield.nn.peripheral_conv import PeripheralConv2d
from widefield.ops import SharingGrid, depthwise_conv2d, peripheral_kernel

PUBLISHED_GRIDS = [
    [7, 4, 2, 1, 1, 1],
    [8, 4, 2, 1, 1, 1],
    [11, 8, 4, 2, 1],
    [10, 8, 4, 2, 1, 1],
    [9, 8, 4, 2, 1, 1, 1],
    [8, 8, 4, 2, 1, 1, 1, 1],
]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(kernel_size: int = 7, **options: Any) -> PeripheralConv2d:
    torch.manual_seed(0)
    return PeripheralConv2d(3, kernel_size, **{"dtype": torch.float64, "small_kernel_size": None, **options})


def literal(x: Tensor, kernel: Tensor, embedding: Tensor, *, border: bool) -> Tensor:
    """Equation 3 over the windows of the padded image; with `border`, h is added to real pixels only."""
    size = kernel.shape[-1]
    margin = [size // 2] * 4
    windows = F.pad(x, margin).unfold(2, size, 1).unfold(3, size, 1)
    is_real = F.pad(torch.ones_like(x), margin).unfold(2, size, 1).unfold(3, size, 1)
    h = embedding[:, None, None] * (is_real if border else 1)
    return ((windows + h) * kernel[:, 0, None, None]).sum((-2, -1))


@pytest.mark.parametrize("half", PUBLISHED_GRIDS)
def test_a_layer_has_the_cells_of_every_published_grid(half: list[int]) -> None:
    grid = SharingGrid.from_half(half)
    layer = make(grid.kernel_size, centre_radius=half.count(1) - 1)
    assert layer.grid == grid
    given = make(grid.kernel_size, grid=grid)
    assert given.weight is not None
    assert given.weight.shape == (3, 1, 2 * len(half) - 1, 2 * len(half) - 1)
    x = draw(2, 3, 9, 8)
    torch.testing.assert_close(given(x), depthwise_conv2d(x, peripheral_kernel(given.weight, grid)))


@pytest.mark.parametrize("position", ["kernel", "border"])
@pytest.mark.parametrize("size", [(9, 8), (3, 15), (1, 2)])
def test_the_embedding_is_added_under_the_window_as_written(position: Any, size: tuple[int, int]) -> None:
    layer, x, h = make(position=position), draw(2, 3, *size), draw(3, 7, 7, seed=1)
    assert layer.weight is not None
    kernel = peripheral_kernel(layer.weight, layer.grid)
    torch.testing.assert_close(layer(x, h), literal(x, kernel, h, border=position == "border"))
    added = layer(x, h) - layer(x)
    of_kernel = (kernel[:, 0] * h).sum((1, 2)).reshape(1, 3, 1, 1).expand_as(added)
    if position == "kernel":
        torch.testing.assert_close(added, of_kernel)
    else:
        assert (added - of_kernel).abs().max() > 1e-3


def test_inside_a_large_image_both_readings_agree() -> None:
    x, h = draw(1, 3, 15, 15), draw(3, 7, 7, seed=1)
    kernel, border = (make(position=position)(x, h) for position in ("kernel", "border"))
    torch.testing.assert_close(kernel[..., 3:-3, 3:-3], border[..., 3:-3, 3:-3])


@pytest.mark.parametrize("position", ["kernel", "border"])
@pytest.mark.parametrize("norm", [True, False])
def test_branches_are_added_with_their_norms(position: Any, norm: bool) -> None:
    layer = randomise(make(small_kernel_size=3, norm=norm, position=position))
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    x, h = draw(2, 3, 8, 6), draw(3, 7, 7, seed=1)
    assert layer.weight is not None
    assert layer.small is not None
    assert layer.norm is not None
    large = literal(x, peripheral_kernel(layer.weight, layer.grid), h, border=position == "border")
    expected = layer.norm(large) if layer.bias is None else large + layer.bias.reshape(-1, 1, 1)
    torch.testing.assert_close(layer(x, h), expected + layer.small(x))


@pytest.mark.parametrize("position", ["kernel", "border"])
def test_gradients_are_the_derivatives(position: Any) -> None:
    layer = make(5, centre_radius=1, small_kernel_size=3, position=position)

    def run(x: Tensor, h: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (x, h))

    names = [name for name, _ in layer.named_parameters()]
    operands = [draw(1, 3, 4, 3), draw(3, 5, 5, seed=1), *(parameter.detach() for parameter in layer.parameters())]
    assert torch.autograd.gradcheck(run, [operand.requires_grad_() for operand in operands])


@pytest.mark.parametrize("norm", [True, False])
def test_a_norm_of_the_batch_takes_the_constant_away_again(norm: bool) -> None:
    layer, h = make(norm=norm, position="kernel").train(), draw(3, 7, 7, seed=1).requires_grad_()
    (layer(draw(2, 3, 9, 8), h) * draw(2, 3, 9, 8, seed=2)).sum().backward()
    assert h.grad is not None
    largest = h.grad.abs().max().item()
    assert largest < 1e-12 if norm else largest > 1e-3


def test_first_values_are_those_of_a_dense_kernel_averaged_over_cells() -> None:
    torch.manual_seed(0)
    grid = SharingGrid.exponential(51)
    layer = PeripheralConv2d(400, 51)
    assert layer.weight is not None
    assert layer.bias is not None
    taps = torch.tensor(grid.sizes, dtype=torch.float32)
    torch.testing.assert_close(
        layer.weight.std(0)[0], 0.02 / torch.outer(taps, taps).sqrt(), rtol=0.2, atol=0, check_dtype=False
    )
    assert not layer.bias.any()


def test_half_precision_and_autocast_keep_the_type_that_convolutions_have() -> None:
    for position in ("kernel", "border"):
        half = make(position=position, small_kernel_size=3).bfloat16().eval()
        h = draw(3, 7, 7).bfloat16()
        x = draw(1, 3, 8, 8).bfloat16()
        expected = make(position=position, small_kernel_size=3)(x.double(), h.double())
        wide = make(position=position, small_kernel_size=3).float().eval()
        for _ in range(2):
            y = half(x, h)
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.02)
            with torch.autocast("cpu", torch.bfloat16):
                y = wide(x.float(), h.float())
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.02)
            half.reparameterize()
            wide.reparameterize()


@pytest.mark.parametrize("position", ["kernel", "border"])
@pytest.mark.parametrize("merged", [False, True])
def test_a_symbolic_trace_gives_the_same(position: Any, merged: bool) -> None:
    layer, x, h = make(position=position).eval(), draw(2, 3, 8, 9), draw(3, 7, 7, seed=1)
    if merged:
        layer.reparameterize()
    torch.testing.assert_close(torch.fx.symbolic_trace(layer)(x, h), layer(x, h))


def test_a_layer_on_the_meta_device_has_no_values() -> None:
    with torch.device("meta"):
        layer = PeripheralConv2d(4, 13, position="border")
    assert all(parameter.is_meta for parameter in layer.parameters())
    assert layer(torch.empty(1, 4, 9, 9, device="meta"), torch.empty(4, 13, 13, device="meta")).shape == (1, 4, 9, 9)
    assert repr(layer).startswith("PeripheralConv2d(\n  4, kernel_size=13 (9x9 cells), position='border'")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kernel_size": 8}, "Expected an odd kernel size, but got 8: use 9."),
        (
            {"small_kernel_size": 4},
            "Expected a small kernel of odd size up to 7, but got 4: "
            "use a smaller odd size, or None for the large kernel alone.",
        ),
        ({"small_kernel_size": 9}, "Expected a small kernel of odd size up to 7, but got 9: use"),
        ({"position": "center"}, "Expected the name of a position, but got 'center': did you mean"),
        (
            {"grid": SharingGrid((2, 1, 2))},
            "Expected a sharing grid of 7 taps, but got 5 (2, 1, 2): give cells that add up to the kernel size.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        make(**options)


def test_an_embedding_that_does_not_fit_is_refused() -> None:
    x = draw(1, 3, 8, 8)
    text = "Expected no embedding for a layer without positions, but got one: make the layer with position='kernel' or"
    with pytest.raises(InputError, match=re.escape(text)):
        make()(x, draw(3, 7, 7))
    with pytest.raises(InputError, match=re.escape(text)):
        make().eval().reparameterize(draw(3, 7, 7))
    for position in ("kernel", "border"):
        layer = make(position=position).eval()
        text = "Expected an embedding of shape (3, 7, 7), but got shape (3, 5, 5): give one number for each tap of each"
        with pytest.raises(InputError, match=re.escape(text)):
            layer(x, draw(3, 5, 5))
        with pytest.raises(InputError, match=re.escape(text)):
            layer.reparameterize(draw(3, 5, 5))
        assert not layer.is_merged
