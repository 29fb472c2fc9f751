from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from widefield import create_model
from widefield._core.errors import InputError
from widefield.analysis.feature_layout import spatial_map
from widefield.analysis.features import Features
from widefield.analysis.images import NoiseTensors
from widefield.analysis.receptive_field_measurement import measure_receptive_field


class OwnNetwork(nn.Module):
    """Nothing registered, a classifier, and an activation that works in place on what the convolution returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 9, 3, stride=2, padding=1)
        self.second = nn.Conv2d(9, 6, 3, stride=2, padding=1)
        self.activation = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(6, 5)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.second(self.first(x)))
        return self.classifier(x.mean((2, 3)))


def seen(model: nn.Module, size: tuple[int, int], layer: str | None = None) -> tuple[str, tuple[int, int], Tensor]:
    field = measure_receptive_field(model, NoiseTensors(1, size), layer=layer)
    assert field.mean.sum() > 0
    return field.layer, field.output_size, field.mean


def test_a_cnn_of_timm_is_looked_at_after_its_last_stage() -> None:
    assert seen(create_model("resnet18"), (64, 96))[:2] == ("layer4", (2, 3))
    assert seen(create_model("convnext_atto"), (64, 64))[:2] == ("stages.3", (2, 2))
    assert seen(create_model("resnet18"), (64, 64), "layer2.0.conv1")[:2] == ("layer2.0.conv1", (8, 8))


def test_tokens_of_a_transformer_become_a_map() -> None:
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", depth=2, img_size=(64, 96)).eval()
    layer, size, mean = seen(model, (64, 96))
    assert (layer, size) == ("blocks.1", (4, 6))
    # Right after the patches are cut out, a location sees its own patch and no other.
    layer, size, mean = seen(model, (64, 96), "patch_embed")
    assert size == (4, 6)
    assert mean[32:48, 48:64].sum() == pytest.approx(mean.sum().item())
    registers = create_model("vit_small_patch14_reg4_dinov2", depth=1, img_size=56).eval()
    assert seen(registers, (56, 56))[:2] == ("blocks.0", (4, 4))


def test_channels_last_maps_are_turned() -> None:
    model = create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), img_size=64).eval()
    assert seen(model, (64, 64))[:2] == ("layers.3", (2, 2))
    features = Features(model, "layers.2")
    image = torch.randn(1, 3, 64, 64)
    assert features(image).shape == (1, 384, 4, 4)
    assert seen(model, (64, 64), "patch_embed.proj")[:2] == ("patch_embed.proj", (16, 16))


def test_a_segmentation_network_of_torchvision_is_looked_at_where_it_answers() -> None:
    model = torchvision.models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None)
    assert seen(model, (64, 64))[:2] == ("output", (64, 64))
    assert seen(model, (64, 64), "backbone.16")[:2] == ("backbone.16", (4, 4))


def test_classifiers_of_torchvision_are_looked_at_where_the_last_map_is() -> None:
    assert seen(torchvision.models.resnet18(), (64, 64))[:2] == ("layer4", (2, 2))
    vit = torchvision.models.VisionTransformer(64, 16, 2, 2, 16, 32)
    layer, size, _ = seen(vit, (64, 64))
    assert layer.startswith("encoder")
    assert size == (4, 4)


def test_a_network_of_ones_own_needs_nothing() -> None:
    torch.manual_seed(0)
    model = OwnNetwork()
    layer, size, _ = seen(model, (16, 16))
    assert (layer, size) == ("activation", (4, 4))
    assert seen(model, (16, 16), "first")[:2] == ("first", (8, 8))
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    assert seen(dense, (16, 16))[:2] == ("output", (16, 16))
    assert seen(dense, (16, 16), "")[:2] == ("output", (16, 16))


def test_what_works_in_place_afterwards_changes_nothing() -> None:
    torch.manual_seed(0)
    model = OwnNetwork().eval()
    image = torch.randn(1, 3, 16, 16)
    expected = model.second(model.first(image))
    assert expected.min() < 0
    torch.testing.assert_close(Features(model, "second")(image), expected)


def test_a_function_may_be_the_layer() -> None:
    model = OwnNetwork().eval()

    def both(network: nn.Module, images: Tensor) -> Tensor:
        assert network is model
        return model.first(images) * 2

    image = torch.randn(1, 3, 16, 16)
    features = Features(model, both)
    torch.testing.assert_close(features(image), 2 * model.first(image))
    assert features.layer == "both"
    cube = Features(model, lambda network, images: torch.arange(512.0).reshape(1, 8, 8, 8))
    assert torch.equal(cube(image), torch.arange(512.0).reshape(1, 8, 8, 8))


def test_the_last_map_is_not_passed_over_for_its_sizes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Conv2d(5, 4, 3, stride=2, padding=1))
    assert Features(model)(torch.randn(1, 3, 16, 24)).shape == (1, 4, 4, 6)
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(Features(model)(image), model(image))


@pytest.mark.parametrize("is_channels_last", [False, True])
def test_which_axes_follow_the_image_is_seen_where_sizes_do_not_tell(is_channels_last: bool) -> None:
    class Turned(nn.Module):
        def __init__(self, size: tuple[int, int] | None = None) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.size = size

        def forward(self, x: Tensor) -> Tensor:
            assert self.size is None or x.shape[-2:] == self.size
            x = self.layer(x)
            return x.permute(0, 2, 3, 1) if is_channels_last else x

    image = torch.randn(1, 3, 16, 16)
    model = Turned()
    torch.testing.assert_close(Features(model)(image), model.layer(image))
    fixed = Turned((16, 16))
    with pytest.raises(InputError, match="Expected a map whose channels can be told from its rows and columns"):
        Features(fixed)(image)
    if is_channels_last:
        fixed.output_fmt = "NHWC"  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(Features(fixed)(image), fixed.layer(image))


def test_unknown_and_unused_layers_are_refused() -> None:
    model = OwnNetwork()
    with pytest.raises(InputError) as caught:
        Features(model, "scond")
    assert str(caught.value).startswith(
        "Expected the name of a layer of OwnNetwork, but got 'scond': did you mean 'second'"
    )
    with pytest.raises(InputError, match="'first' or 'second' or 'activation'"):
        Features(model, "@")
    with pytest.raises(InputError, match="Expected a layer that a forward pass uses, but got 'unused', which is not"):
        Features(model, "unused")(torch.randn(1, 3, 8, 8))


def test_layers_without_a_map_are_refused() -> None:
    model = OwnNetwork()
    with pytest.raises(InputError, match=r"Expected a map \(N, C, h, w\), but got an output of shape \(1, 5\): name a"):
        Features(model, "classifier")(torch.randn(1, 3, 8, 8))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(InputError, match="with a layer whose output is a map, but got Sequential without one"):
        Features(flat)(torch.randn(1, 3, 8, 8))


def test_images_that_a_network_does_not_take_are_told() -> None:
    model = create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(InputError) as caught:
        Features(model)(torch.randn(1, 3, 64, 64))
    told = str(caught.value)
    assert told.startswith(
        "Expected images that VisionTransformer takes, but got an error in its forward pass on 3 x 64"
    )
    assert told.endswith(": use another image size, or another layer.")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((1, 5, 7, 7), (224, 224), (5, 7, 7)),
        ((1, 7, 7, 5), (224, 224), (5, 7, 7)),
        ((1, 8, 7, 7), (224, 224), (8, 7, 7)),
        ((1, 3, 7, 10), (200, 310), (3, 7, 10)),
        ((1, 7, 10, 3), (200, 310), (3, 7, 10)),
        ((1, 3, 448, 448), (224, 224), (3, 448, 448)),
        ((1, 49, 5), (224, 224), (5, 7, 7)),
        ((1, 50, 5), (224, 224), (5, 7, 7)),
        ((1, 24, 5), (64, 96), (5, 4, 6)),
    ],
)
def test_layouts_are_told_by_the_aspect_ratio(
    shape: tuple[int, ...], image: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert spatial_map(torch.zeros(shape), image).shape[1:] == expected


def test_rows_of_tokens_stay_rows() -> None:
    tokens = torch.arange(25.0).reshape(1, 25, 1)
    found = spatial_map(tokens[:, :24], (64, 96), prefix_tokens=0)
    assert found[0, 0].tolist() == [list(range(6 * row, 6 * row + 6)) for row in range(4)]
    assert spatial_map(tokens, (64, 96), prefix_tokens=1)[0, 0, 0, 0] == 1


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (1, 5, 3, 9), (1, 51, 5), (1, 7, 49), (1, 0, 5)])
def test_what_is_no_grid_of_the_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="a map of several locations in the aspect ratio of the image, 224 x 224 px"):
        spatial_map(torch.zeros(shape), (224, 224))


def test_what_can_be_read_in_two_ways_is_refused_unless_it_is_known() -> None:
    cube = torch.arange(343.0).reshape(1, 7, 7, 7)
    with pytest.raises(
        InputError, match=r"channels can be told from its rows and columns.*\(1, 7, 7, 7\): use images of"
    ):
        spatial_map(cube, (224, 224))
    assert torch.equal(spatial_map(cube, (224, 224), is_channels_last=True), cube.permute(0, 3, 1, 2))
    assert spatial_map(cube, (224, 224), is_channels_last=False) is cube


def test_one_tensor_is_taken_out_of_dictionaries_and_tuples() -> None:
    wanted, other = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 8, 8)
    for output in ({"aux": other, "out": wanted}, {"a": wanted}, (wanted, None), [wanted]):
        assert spatial_map(output, (64, 64)) is wanted
    for output in ({"a": wanted, "b": other}, (wanted, other), None, ()):
        with pytest.raises(InputError, match="Expected a layer that returns one tensor, but got"):
            spatial_map(output, (64, 64))
    with pytest.raises(InputError, match=r"Expected a map \(N, C, h, w\), but got .* \(1, 3, 4, 4, 4\)"):
        spatial_map(torch.zeros(1, 3, 4, 4, 4), (64, 64))
