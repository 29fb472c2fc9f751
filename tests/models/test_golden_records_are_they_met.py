from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from support.golden import half_units, image, record, state
from torch import Tensor

from widefield.checkpoints.replknet import to_published, to_widefield
from widefield.models import RepLKNet
from widefield.nn import ReparamConv2d
from widefield.reparam import fold


@dataclass
class Published:
    record: dict[str, Any]
    state: dict[str, Tensor]
    image: Tensor

    def model(self) -> RepLKNet:
        with torch.device("meta"):
            model = timm.create_model(self.record["name"]).double()
        assert isinstance(model, RepLKNet)
        model.load_state_dict(to_widefield(self.state), assign=True)
        return model.eval()


@pytest.fixture(scope="module", params=["replknet_3b", "replknet_31b"])
def published(request: pytest.FixtureRequest) -> Published:
    values = record(request.param)
    return Published(record=values, state=state(values["state"]), image=image(values["input"]))


def check_values(actual: Tensor, recorded: list[float]) -> None:
    """To half a unit of the last recorded digit."""
    difference = (actual - torch.tensor(recorded, dtype=torch.float64)).abs()
    assert (difference <= half_units(recorded)).all()


def relative(actual: Tensor, recorded: list[float]) -> float:
    expected = torch.tensor(recorded, dtype=torch.float64)
    return ((actual - expected).norm() / expected.norm()).item()


@torch.no_grad()
def check_record(published: Published, images: int) -> None:
    values, model = published.record, published.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == values["parameters"]
    features, stages = model.forward_intermediates(published.image[:images])
    assert isinstance(features, Tensor)
    logits = model.forward_head(features)
    for stage, recorded in zip(stages, values["stages"], strict=True):
        assert isinstance(stage, Tensor)
        assert list(stage.shape[1:]) == recorded["shape"][1:]
        check_values(stage[0, :8, 0, 0], recorded["head"])
        if images == 2:
            assert stage.norm().item() == pytest.approx(recorded["norm"], rel=1e-10)
    for row, recorded in zip(logits, values["logits"], strict=False):
        check_values(row[:32], recorded)
    if images == 2:
        assert logits.norm().item() == pytest.approx(values["logits_norm"], rel=1e-10)

    fold(model, where=lambda name, module: isinstance(module, ReparamConv2d))
    merged_state = to_published(model.state_dict())
    assert {key: list(value.shape) for key, value in merged_state.items()} == dict(values["merged"]["state"])
    assert sum(parameter.numel() for parameter in model.parameters()) == values["merged"]["parameters"]
    merged = model(published.image[:images])
    assert ((merged - logits).norm() / logits.norm()).item() < 1e-10
    for row, recorded in zip(merged, values["merged"]["logits"], strict=False):
        assert relative(row[:8], recorded) < 1e-5

    fold(model)
    assert sum(parameter.numel() for parameter in model.parameters()) <= values["merged"]["parameters"]
    assert not any("prelkb_bn" in key for key in to_published(model.state_dict()))


def test_stages_logits_and_merged_logits_are_those_of_the_published_code(published: Published) -> None:
    check_record(published, images=1)


@pytest.mark.slow
def test_norms_over_both_images_are_those_of_the_published_code(published: Published) -> None:
    check_record(published, images=2)


@pytest.mark.slow
@torch.no_grad()
def test_float32_and_the_whole_merge_stay_close_to_the_record(published: Published) -> None:
    model = published.model().float()
    x = published.image[:1].float()
    assert relative(model(x)[0, :32].double(), published.record["logits"][0]) < 1e-4
    fold(model)
    assert relative(model(x)[0, :32].double(), published.record["logits"][0]) < 1e-4
