from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widefield._core.errors import InputError, RunError
from widefield.analysis.images import NoiseTensors
from widefield.analysis.receptive_field_measurement import measure_receptive_field, measure_receptive_fields


def convolution(kernel: Tensor, channels: int = 1, **settings: Any) -> nn.Conv2d:
    """The same kernel from every channel to every channel."""
    size = (int(kernel.shape[0]), int(kernel.shape[1]))
    layer = nn.Conv2d(channels, channels, size, bias=False, **settings)
    with torch.no_grad():
        layer.weight.copy_(kernel.expand_as(layer.weight))
    return layer


def bright(count: int, size: tuple[int, int], channels: int = 1) -> Iterator[Tensor]:
    for _ in range(count):
        yield torch.ones(1, channels, *size)


def test_the_map_of_one_convolution_is_its_kernel() -> None:
    kernel = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) + 0.1
    field = measure_receptive_field(convolution(kernel, padding="same"), bright(2, (24, 32)), location=(10, 13))
    expected = torch.zeros(24, 32, dtype=torch.float64)
    expected[8:13, 10:17] = kernel.double()
    torch.testing.assert_close(field.mean, expected)
    assert field.layer == "output"
    assert field.location == (10, 13)
    assert field.output_size == field.input_size == (24, 32)


def test_negative_derivatives_and_negative_outputs_count_for_nothing() -> None:
    kernel = torch.tensor([[1.0, -2.0, 3.0]])
    field = measure_receptive_field(convolution(kernel, padding="same"), bright(1, (5, 5)))
    assert field.mean[2].tolist() == [0, 1, 0, 3, 0]
    negative = convolution(-kernel, padding="same")
    assert measure_receptive_field(negative, bright(1, (5, 5))).mean.sum() == 0


def test_dilation_and_stride_leave_their_gaps() -> None:
    field = measure_receptive_field(convolution(torch.ones(3, 3), dilation=3, stride=2), bright(1, (21, 21)))
    rows = field.mean.sum(1).nonzero().flatten().tolist()
    assert field.output_size == (8, 8)
    assert rows == [8, 11, 14]


@pytest.mark.parametrize("size", [3, 9])
def test_a_stack_of_boxes_is_as_wide_as_the_gaussian_that_it_tends_to(size: int) -> None:
    layers = 6
    stack = nn.Sequential(*(convolution(torch.ones(size, size) / size**2, padding=size // 2) for _ in range(layers)))
    field = measure_receptive_field(stack, bright(1, (128, 128)))
    deviation = math.sqrt(layers * (size**2 - 1) / 12)
    assert field.effective_diameter_px == pytest.approx(4 * deviation, rel=1e-4)
    places = torch.arange(128) - 64
    gaussian = torch.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * deviation**2)).double()
    profile, expected = field.radial_profile(), gaussian[64, 64:]
    half = next(radius for radius, value in enumerate(profile) if value < profile[0] / 2)
    assert half == pytest.approx(math.sqrt(2 * math.log(2)) * deviation, rel=0.05, abs=1)
    assert (profile[:30] / profile[0] - expected[:30]).abs().max() < 0.05


def test_the_mean_and_its_standard_error_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.GELU(), nn.Conv2d(8, 4, 5, padding=2))
    images = list(NoiseTensors(13, (16, 16)))
    each = torch.stack([measure_receptive_field(model, [image]).mean for image in images])
    field = measure_receptive_field(model, images)
    torch.testing.assert_close(field.mean, each.mean(0), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(field.standard_error, each.std(0) / math.sqrt(13), rtol=1e-9, atol=1e-15)
    assert field.group_sums is not None
    torch.testing.assert_close(field.group_sums[2].double(), each[2::10].sum(0), rtol=1e-6, atol=1e-9)
    assert measure_receptive_field(model, images[:1]).standard_error.isnan().all()


def test_several_locations_are_several_fields_of_one_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    images = list(NoiseTensors(3, (16, 24)))
    locations = [(0, 0), (4, 6), (7, 11)]
    for field, location in zip(measure_receptive_fields(model, images, locations=locations), locations, strict=True):
        alone = measure_receptive_field(model, images, location=location)
        assert field.location == location
        assert torch.equal(field.mean, alone.mean)
        assert torch.equal(field.standard_error, alone.standard_error)
        assert field.ratios == alone.ratios


def test_the_network_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 3))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    modes = [module.training for module in model.modules()]
    needs = [parameter.requires_grad for parameter in model.parameters()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        measure_receptive_field(model, NoiseTensors(2, (8, 8)))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or (parameter.grad is not None and torch.equal(parameter.grad, gradient))
    with pytest.raises(InputError):
        measure_receptive_field(model, NoiseTensors(2, (8, 8)), location=(99, 0))
    assert [module.training for module in model.modules()] == modes


class SquareRoot(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.sum(1, keepdim=True), torch.ones(1, 1, 3, 3, dtype=x.dtype), padding=1).sqrt()


def test_images_without_finite_gradients_are_left_out_and_counted() -> None:
    bad = torch.zeros(1, 3, 8, 8)
    field = measure_receptive_field(SquareRoot(), [bad + 1, bad, bad + 4, bad])
    assert (field.images, field.skipped) == (2, 2)
    assert torch.isfinite(field.mean).all()
    told = r"Expected finite gradients for at least one image, but got none for all 2 of root: look for weights"
    with pytest.raises(RunError, match=told):
        measure_receptive_field(SquareRoot(), [bad, bad], name="root")


def test_networks_in_double_precision_are_computed_in_it() -> None:
    model = nn.Conv2d(3, 2, 3, padding=1).double()
    field = measure_receptive_field(model, NoiseTensors(1, (8, 8)))
    weight = model.weight.detach()
    shares = [(weight[c] * (sign > 0)).clone() for c, sign in enumerate(_signs(model))]
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[3:6, 3:6] = sum(shares).relu().sum(0)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(field.mean, expected, rtol=1e-14, atol=0)


def _signs(model: nn.Conv2d) -> Tensor:
    (image,) = NoiseTensors(1, (8, 8))
    return model(image.double())[0, :, 4, 4]


def test_what_cannot_be_averaged_is_said() -> None:
    model = nn.Conv2d(3, 2, 3)
    one = torch.zeros(1, 3, 8, 8)
    with pytest.raises(InputError, match="Expected at least one image, but got none: give some"):
        measure_receptive_field(model, [])
    with pytest.raises(InputError, match="Expected images of one size, 8 x 8 px as the first, but got one of 8 x 9 px"):
        measure_receptive_field(model, [one, torch.zeros(3, 8, 9)])
    with pytest.raises(InputError, match=r"images \(1, C, H, W\) or \(C, H, W\), but got one of shape \(2, 3, 8, 8\)"):
        measure_receptive_field(model, [torch.zeros(2, 3, 8, 8)])
    with pytest.raises(InputError, match=r"locations in a map of 6 x 6, counted from 0, but got \(6, 0\): choose one"):
        measure_receptive_field(model, [one], location=(6, 0))
    with pytest.raises(InputError, match="Expected at least one location, but got none"):
        measure_receptive_fields(model, [one], locations=[])
    with pytest.raises(InputError, match="Expected a threshold between 0 and 1, but got 20"):
        measure_receptive_field(model, [one], thresholds=(20,))
    with pytest.raises(InputError, match="Expected the name of a centre, but got 'maps': did you mean 'map'"):
        measure_receptive_field(model, [one], around="maps")  # pyright: ignore[reportArgumentType]
    constant = nn.Embedding(4, 3)

    def positions(_: nn.Module, images: Tensor) -> Tensor:
        return constant.weight.detach().T.reshape(1, 3, 2, 2)

    with pytest.raises(InputError, match="Expected a map that gradients lead from to the image, but got 'positions'"):
        measure_receptive_field(model, [one], layer=positions)
