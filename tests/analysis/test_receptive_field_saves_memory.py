from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from widefield import create_model
from widefield.analysis.contribution import contribution, frozen
from widefield.analysis.features import Features
from widefield.analysis.images import NoiseTensors
from widefield.analysis.receptive_field_measurement import measure_receptive_field, measure_receptive_fields
from widefield.analysis.recomputation import recomputing


@pytest.mark.parametrize(
    ("name", "size", "block", "count"),
    [
        ("resnet18", 64, "layer3.1", 8),
        ("replknet_nano", 64, "stages.2.blocks.3", 12),
        ("swin_tiny_patch4_window7_224", 224, "layers.2.blocks.5", 12),
        ("vit_tiny_patch16_224", 224, "blocks.11", 12),
    ],
)
def test_recomputing_blocks_changes_no_bit(name: str, size: int, block: str, count: int) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    with recomputing(model) as blocks:
        assert block in blocks
    assert len([name for name in blocks if "blocks" in name or "layer" in name]) == count
    images = list(NoiseTensors(1, (size, size)))
    locations = [(0, 0), (1, 1)]
    plain = measure_receptive_fields(model, images, locations=locations, checkpointing=False)
    thrifty = measure_receptive_fields(model, images, locations=locations, checkpointing=True)
    for one, other in zip(plain, thrifty, strict=True):
        assert torch.equal(one.mean, other.mean)
        assert one.mean.sum() > 0
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_layer_inside_of_a_block_is_found_as_well() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    images = list(NoiseTensors(1, (64, 64)))
    for layer in ("layer3.1.conv1", "layer3.1", "layer3"):
        one = measure_receptive_field(model, images, layer=layer, checkpointing=False)
        other = measure_receptive_field(model, images, layer=layer, checkpointing=True)
        assert torch.equal(one.mean, other.mean)


def test_less_is_kept_for_the_backward_pass() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleDict({str(index): nn.Conv2d(4, 4, 3, padding=1) for index in range(4)})

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers.values():
                x = nn.functional.gelu(layer(x))
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*(Block() for _ in range(5)))).eval()
    (image,) = NoiseTensors(1, (32, 32))

    def kept() -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(image.clone().requires_grad_())
        del output
        return sum(storages.values())

    with frozen(model):
        everything = kept()
        with recomputing(model) as blocks:
            inputs = kept()
    assert len(blocks) == 5
    assert inputs < everything / 3


def test_a_forward_of_ones_own_is_put_back() -> None:
    model: Any = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 1)), nn.Sequential(nn.Conv2d(2, 2, 1))))
    original = model[0][0].forward
    doubled = lambda x: 2 * original(x)  # noqa: E731
    model[0][0].forward = doubled
    (image,) = NoiseTensors(1, (8, 8))
    plain = contribution(Features(model, ""), image).maps
    with recomputing(model) as blocks:
        assert blocks == ("0.0", "0.1")
        thrifty = contribution(Features(model, ""), image).maps
    assert model[0][0].forward is doubled
    assert "forward" not in model[0][1].__dict__
    assert torch.equal(plain, thrifty)
