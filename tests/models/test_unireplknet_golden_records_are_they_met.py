from __future__ import annotations

import pytest
import timm
import torch
from support.golden import half_units, image, record, state
from torch import Tensor

from widefield.checkpoints.unireplknet import to_published, to_widefield
from widefield.models.unireplknet import UniRepLKNet
from widefield.reparam import fold


def loaded(name: str) -> UniRepLKNet:
    with torch.device("meta"):
        model = timm.create_model(name).double()
    assert isinstance(model, UniRepLKNet)
    model.load_state_dict(to_widefield(state(record(name)["state"])), assign=True)
    return model.eval()


def check_values(actual: Tensor, recorded: list[float]) -> None:
    """To half a unit of the last recorded digit."""
    difference = (actual - torch.tensor(recorded, dtype=torch.float64)).abs()
    assert (difference <= half_units(recorded)).all()


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", ["unireplknet_a", "unireplknet_t"])
@torch.no_grad()
def test_stages_logits_and_merged_logits_are_those_of_the_published_code(name: str) -> None:
    values, model = record(name), loaded(name)
    x = image(values["input"])
    assert sum(parameter.numel() for parameter in model.parameters()) == values["parameters"]
    features, stages = model.forward_intermediates(x)
    assert isinstance(features, Tensor)
    logits = model.forward_head(features)
    for stage, recorded in zip(stages, values["stages"], strict=True):
        assert isinstance(stage, Tensor)
        assert list(stage.shape) == recorded["shape"]
        check_values(stage[0, :8, 0, 0], recorded["head"])
        assert stage.norm().item() == pytest.approx(recorded["norm"], rel=1e-10)
    for row, recorded in zip(logits, values["logits"], strict=True):
        check_values(row[:32], recorded)
    assert logits.norm().item() == pytest.approx(values["logits_norm"], rel=1e-10)

    fold(model)
    shapes = {key: list(value.shape) for key, value in to_published(model.state_dict()).items()}
    assert shapes == dict(values["merged"]["state"])
    assert sum(parameter.numel() for parameter in model.parameters()) == values["merged"]["parameters"]
    merged = model(x)
    assert relative(merged, logits) < 1e-10
    assert relative(merged[:, :8], torch.tensor(values["merged"]["logits"], dtype=torch.float64)) < 1e-5


@torch.no_grad()
def test_float32_stays_close_to_the_record_in_both_forms() -> None:
    values, model = record("unireplknet_a"), loaded("unireplknet_a").float()
    x, expected = image(values["input"]).float(), torch.tensor(values["logits"], dtype=torch.float64)
    assert relative(model(x)[:, :32].double(), expected) < 1e-4
    fold(model)
    assert relative(model(x)[:, :32].double(), expected) < 1e-4


@torch.no_grad()
def test_a_merged_published_state_dict_is_loaded_into_a_merged_network() -> None:
    source = loaded("unireplknet_a")
    fold(source)
    theirs = to_published(source.state_dict())
    model = timm.create_model("unireplknet_a").double().eval()
    fold(model)
    model.load_state_dict(to_widefield(theirs))
    x = image([1, 3, 64, 64])
    assert torch.equal(model(x), source(x))
