from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from widefield import create_model
from widefield._core.errors import InputError
from widefield.analysis.images import NoiseTensors
from widefield.analysis.receptive_field_measurement import measure_receptive_field
from widefield.analysis.theoretical_field import theoretical_receptive_field


def convolutions(layers: list[tuple[int, int, int]], **settings: str) -> nn.Sequential:
    """Convolutions of these kernel sizes, strides and dilations."""
    return nn.Sequential(
        *(
            nn.Sequential(nn.Conv2d(1, 1, k, stride=s, dilation=d, padding=d * (k - 1) // 2), nn.ReLU())
            for k, s, d in layers
        )
    )


def arithmetic(layers: list[tuple[int, int, int]]) -> tuple[int, int]:
    """Size and stride of a stack, by hand."""
    size, stride = 1, 1
    for k, s, d in layers:
        size += d * (k - 1) * stride
        stride *= s
    return size, stride


@pytest.mark.parametrize(
    "layers",
    [
        [(1, 1, 1)],
        [(5, 1, 1)],
        [(3, 2, 1), (3, 1, 2), (7, 1, 1)],
        [(7, 2, 1), (3, 2, 1), (3, 1, 3), (3, 2, 1)],
        [(3, 1, 8), (1, 4, 1)],
    ],
)
def test_stacks_of_convolutions_see_what_arithmetic_says(layers: list[tuple[int, int, int]]) -> None:
    size, stride = arithmetic(layers)
    field = theoretical_receptive_field(convolutions(layers), (64, 96), channels=1)
    assert field.size_px == (size, size)
    assert field.stride_px == (stride, stride)
    top, left, bottom, right = field.box
    row, column = field.location
    assert (top, left) == (max(0, row * stride - size // 2), max(0, column * stride - size // 2))
    assert (bottom, right) == (min(63, row * stride + size // 2), min(95, column * stride + size // 2))


def test_kernels_may_be_rectangles_and_weights_zero() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, (3, 9), padding=(1, 4)), nn.Conv2d(4, 4, (1, 5), padding=(0, 2), groups=4))
    with torch.no_grad():
        nn.init.zeros_(model[0].weight)  # pyright: ignore[reportArgumentType]
    field = theoretical_receptive_field(model, (32, 32), location=(10, 20))
    assert field.size_px == (3, 13)
    assert field.box == (9, 14, 11, 26)


def test_groups_stay_apart() -> None:
    class FirstChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.Conv2d(2, 4, 3, padding=1, groups=2)
            self.wide = nn.Conv2d(1, 1, 9, padding=4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x[:, :1], self.wide(x[:, 1:])], 1)
            return self.grouped(x)[:, :2]

    assert theoretical_receptive_field(FirstChannel(), (32, 32), channels=2).size_px == (3, 3)


def test_pooling_and_branches_are_followed() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.MaxPool2d(3, stride=2, padding=1)
            self.left, self.right = nn.Conv2d(3, 2, 3, padding=1), nn.AvgPool2d(7, stride=1, padding=3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(x)
            return torch.cat([self.left(x), self.right(x)], 1)

    field = theoretical_receptive_field(Branches(), (48, 48))
    assert field.size_px == (3 + 2 * 6, 3 + 2 * 6)
    assert field.stride_px == (2, 2)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 435), ("resnet50", 427), ("replknet_nano", 1171)])
def test_networks_have_their_known_fields(name: str, size: int) -> None:
    model = create_model(name)
    field = theoretical_receptive_field(model, (64, 64))
    assert field.size_px == (size, size)
    assert field.stride_px == (32, 32)
    assert field.box == (0, 0, 63, 63)
    assert model.training


def test_the_field_of_a_large_kernel_network_is_the_sum_of_its_layers() -> None:
    # Stem 1 + 2 + 4 + 4 px, and of every stage its blocks at their stride and the transition to it.
    expected = 11 + 12 * 4 * 1 + 8 + 12 * 8 * 1 + 16 + 12 * 16 * 3 + 32 + 12 * 32 * 1
    assert theoretical_receptive_field(create_model("replknet_nano"), (64, 64)).size_px[0] == expected == 1171


def test_within_an_early_layer_the_box_is_what_gradients_reach() -> None:
    torch.manual_seed(0)
    model = create_model("replknet_nano").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    field = theoretical_receptive_field(model, (128, 128), layer="stages.0")
    seen = measure_receptive_field(model, NoiseTensors(1, (128, 128)), layer="stages.0").mean
    top, left, bottom, right = field.box
    assert 0 < top < bottom < 127
    outside = seen.clone()
    outside[top : bottom + 1, left : right + 1] = 0
    # Fast transforms leave a rounding error everywhere.
    assert outside.max() < 1e-5 * seen.max()
    assert seen[top].max() > 0
    assert seen[:, right].max() > 0


@pytest.mark.parametrize("name", ["unireplknet_a", "vit_tiny_patch16_224"])
def test_global_operations_reach_everywhere(name: str) -> None:
    settings = {"depth": 1, "img_size": 64} if name.startswith("vit") else {"depths": (1, 1, 1, 1)}
    field = theoretical_receptive_field(create_model(name, **settings), (64, 64), location=(0, 0))
    assert field.size_px == (None, None)
    assert field.stride_px == (None, None)
    assert field.box == (0, 0, 63, 63)


def test_decomposed_and_peripheral_kernels_are_followed() -> None:
    settings = {"depths": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
    for name in ("slak_t", "pelk_t"):
        field = theoretical_receptive_field(create_model(name, **settings), (64, 64), layer="stages.0")
        # A stem of 4 x 4 without overlap, and one kernel of 51 at stride 4.
        assert field.size_px == (4 + 4 * 50, 4 + 4 * 50), name
        assert field.stride_px == (4, 4)


def test_bad_questions_are_refused() -> None:
    model = convolutions([(3, 1, 1)])
    with pytest.raises(InputError, match=r"a location in a map of 8 x 8, counted from 0, but got \(8, 0\): choose one"):
        theoretical_receptive_field(model, (8, 8), location=(8, 0), channels=1)
    with torch.no_grad():
        model[0][0].weight.fill_(float("nan"))  # pyright: ignore[reportIndexIssue, reportArgumentType]
    broken = nn.Sequential(model, nn.BatchNorm2d(1))
    nn.init.constant_(broken[1].weight, float("nan"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="Expected a network that is finite on an image of zeros, but got NaN: look"):
        theoretical_receptive_field(broken, (8, 8), channels=1)

    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    with pytest.raises(InputError, match=r"a location of 'output' that the image reaches, but got \(4, 4\), which it"):
        theoretical_receptive_field(Blind(), (8, 8))
