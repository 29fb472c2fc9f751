from __future__ import annotations

from typing import Any

import pytest
import torch
from support.golden import half_units, image, record, state
from torch import Tensor

from widefield.checkpoints.layouts import in_layout
from widefield.models.published import load_published, read_published
from widefield.nn.reparam_conv import ReparamConv2d
from widefield.reparam import fold


def drawn(values: dict[str, Any]) -> dict[str, Tensor]:
    """The recorded weights; of the heads, which come after the backbone, the shapes alone."""
    entries = values["state"]
    backbone = sum(key.startswith("backbone.") for key, _ in entries)
    classifier = next((index for index, entry in enumerate(entries) if entry[0] == "head.fc.bias"), backbone - 1)
    heads = {key: torch.empty(shape, dtype=torch.float64) for key, shape in entries[classifier + 1 :]}
    return state(entries[: classifier + 1]) | heads


def check_summary(actual: Tensor, recorded: dict[str, Any], images: int) -> None:
    """To half a unit of the last recorded digit, and the norm to 1e-10."""
    assert list(actual.shape[1:]) == recorded["shape"][1:]
    head = actual[0, :8, 0, 0] if actual.dim() == 4 else actual[0, :8]
    expected = torch.tensor(recorded["head"], dtype=torch.float64)
    assert ((head - expected).abs() <= half_units(recorded["head"])).all()
    if images == recorded["shape"][0]:
        assert actual.norm().item() == pytest.approx(recorded["norm"], rel=1e-10)


def relative(actual: Tensor, recorded: list[float]) -> float:
    expected = torch.tensor(recorded, dtype=torch.float64)
    return ((actual - expected).norm() / expected.norm()).item()


def difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@torch.no_grad()
def check_backbone(name: str, images: int) -> None:
    values = record(name)
    weights = drawn(values)
    model = load_published({"state_dict": weights, "meta": {"epoch": 12}})
    x = image(values["input"])[:images]
    stages = model.forward_intermediates(x, intermediates_only=True)
    for stage, recorded in zip(stages, values["stages"], strict=True):
        check_summary(stage, recorded, images)
    names = set(in_layout(model.state_dict(), read_published(weights).recognised.family, "backbone"))
    assert names == {key for key, _ in values["state"] if key.startswith("backbone.")}
    if "merged" not in values:
        return
    fold(model)
    theirs = in_layout(model.state_dict(), "unireplknet", "backbone")
    recorded_shapes = {key: shape for key, shape in values["merged"]["state"] if key.startswith("backbone.")}
    assert {key: list(value.shape) for key, value in theirs.items()} == recorded_shapes
    merged = load_published(theirs).forward_intermediates(x, intermediates_only=True)
    for index, (actual, stage) in enumerate(zip(merged, stages, strict=True)):
        assert difference(actual, stage) < 1e-10
        # Merged in float32 by the authors.
        assert relative(actual[0, :8, 0, 0], values["merged"]["outputs"][f"stage{index}"]["head"]) < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "mm_upernet_replknet_31b",
        "mm_upernet_unireplknet_t",
        pytest.param("mm_cascade_unireplknet_t", marks=pytest.mark.slow),
    ],
)
def test_backbones_of_larger_models_give_the_recorded_features(name: str) -> None:
    check_backbone(name, images=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mm_upernet_replknet_31b", "mm_upernet_unireplknet_t", "mm_cascade_unireplknet_t"])
def test_backbones_of_larger_models_give_the_recorded_norms(name: str) -> None:
    check_backbone(name, images=2)


@torch.no_grad()
def check_mmpretrain(images: int) -> None:
    values = record("mm_mmpretrain_replknet_31b")
    model = load_published(drawn(values))
    assert sum(parameter.numel() for parameter in model.parameters()) == values["parameters"]
    x = image(values["input"])[:images]
    features, stages = model.forward_intermediates(x)
    for stage, recorded in zip(stages, values["stages"], strict=True):
        check_summary(stage, recorded, images)
    check_summary(model.forward_head(features, pre_logits=True), values["pooled"], images)
    logits = model.forward_head(features)
    for row, recorded in zip(logits, values["logits"], strict=False):
        expected = torch.tensor(recorded, dtype=torch.float64)
        assert ((row[:32] - expected).abs() <= half_units(recorded)).all()
    if images == 2:
        assert logits.norm().item() == pytest.approx(values["logits_norm"], rel=1e-10)

    fold(model, where=lambda _, module: isinstance(module, ReparamConv2d))
    theirs = in_layout(model.state_dict(), "replknet", "mmpretrain")
    recorded_shapes = dict(values["merged"]["state"])
    assert {key: list(value.shape) for key, value in theirs.items()} == recorded_shapes
    merged = load_published(theirs)
    assert sum(parameter.numel() for parameter in merged.parameters()) == values["merged"]["parameters"]
    outputs = merged(x)
    assert difference(outputs, logits) < 1e-10
    for row, recorded in zip(outputs, values["merged"]["logits"], strict=False):
        assert relative(row[: len(recorded)], recorded) < 1e-9


def test_mmpretrains_classifier_and_its_deploy_form_give_the_recorded_logits() -> None:
    check_mmpretrain(images=1)


@pytest.mark.slow
def test_mmpretrains_classifier_gives_the_recorded_norms() -> None:
    check_mmpretrain(images=2)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    ["slak_t", "unireplknet_a", *(pytest.param(n, marks=pytest.mark.slow) for n in ("replknet_3b", "unireplknet_t"))],
)
def test_classifiers_are_loaded_from_the_authors_names_alone(name: str) -> None:
    values = record(name)
    published = read_published({"model": state(values["state"])})
    assert published.variant == name
    model = load_published(in_layout(published.tensors, published.recognised.family, "official"))
    logits = model(image(values["input"])[:1])
    assert relative(logits[0, :32], values["logits"][0]) < 1e-9
