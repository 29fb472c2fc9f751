"""Scales of the learning rate: rate^(13 - id) with the ids of RepLKNet's, ConvNeXt's and UniRepLKNet's code."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from widefield import list_models
from widefield._core.errors import InputError
from widefield.engine import OptimizerConfig
from widefield.engine.optim import parameter_groups
from widefield.recipes import RECIPES, recipe
from widefield.tasks.classification import ModelConfig, RunConfig
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.distillation import AdaptedStudent

DECAYED = [name for name in RECIPES if recipe(name).optimizer.layer_decay_by == "layer"]
DECAYED = [name for name in DECAYED if recipe(name).optimizer.layer_decay is not None]


def scales_of(config: RunConfig) -> tuple[nn.Module, dict[str, float]]:
    with torch.device("meta"):
        model = make_classifier(replace(config.model, weights=None), 1000)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config.optimizer)
    return model, {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}


def replknet_id(name: str) -> int:
    """Stages 0 and 1 with their transitions 1 and 2, the third 3 + entry // 4, transitions.2 11, the last 12."""
    if name.startswith("stem."):
        return 0
    found = re.match(r"stages\.(\d)\.(downsample|blocks\.(\d+))\.", name)
    if found is None:
        return 13
    stage, entry = int(found[1]), found[3]
    if entry is None:
        return {1: 1, 2: 2, 3: 11}[stage]
    return (1, 2, 3 + int(entry) // 4, 12)[stage]


def convnext_id(name: str) -> int:
    """Stem 0, downsample 1 and 2 -> 2 and 3, downsample 3 -> 12, stages 1, 2, 3 + block // 3, 12, rest 13."""
    if name.startswith("stem."):
        return 0
    found = re.match(r"stages\.(\d)\.(downsample|embedding|blocks\.(\d+))", name)
    if found is None:
        return 13
    stage, entry = int(found[1]), found[3]
    if found[2] == "downsample":
        return {1: 2, 2: 3, 3: 12}[stage]
    # PeLK's embeddings, of which nothing is published, go with the first blocks of their stage.
    return (1, 2, 3 + int(entry or 0) // 3, 12)[stage]


@pytest.mark.parametrize("name", DECAYED)
def test_every_parameter_has_the_published_scale(name: str) -> None:
    config = recipe(name)
    rate = config.optimizer.layer_decay
    assert rate is not None
    published = replknet_id if name.startswith("replknet") else convnext_id
    model, scales = scales_of(config)
    assert set(scales) == {name for name, _ in model.named_parameters()}
    for parameter, scale in scales.items():
        assert scale == pytest.approx(rate ** (13 - published(parameter)), rel=1e-12), parameter


def test_the_recipes_with_layers_are_those_that_were_published_so() -> None:
    assert len(DECAYED) == 4 + 1 + 2 + 4


VARIANTS = [name for name in list_models() if re.fullmatch(r"unireplknet_\w+|(slak|pelk|convnext_lk)_[at]", name)]


@pytest.mark.parametrize("name", VARIANTS)
def test_fewer_blocks_leave_the_published_layers_where_they_are(name: str) -> None:
    config = recipe("unireplknet_s_in22k_to_in1k_384")
    model, scales = scales_of(replace(config, model=ModelConfig(name=name)))
    assert scales == {
        parameter: pytest.approx(0.8 ** (13 - convnext_id(parameter))) for parameter, _ in model.named_parameters()
    }
    assert min(scales.values()) == pytest.approx(0.8**13)


@pytest.mark.parametrize("name", ["unireplknet_a", "replknet_nano"])
def test_a_student_with_adapters_has_the_scales_of_one_without(name: str) -> None:
    config = replace(recipe("unireplknet_s_in22k_to_in1k_384"), model=ModelConfig(name=name))
    student, alone = scales_of(config)
    adapted = AdaptedStudent(student, student, (16, 32), 64)
    names = {parameter: name for name, parameter in adapted.named_parameters()}
    groups = parameter_groups(adapted, config.optimizer)
    scales = {names[parameter]: group["lr_scale"] for group in groups for parameter in group["params"]}
    adapters = {name: scales.pop(name) for name in list(scales) if name.startswith("adapters.")}
    assert set(adapters.values()) == {1.0}
    assert len(adapters) == 4
    assert {name.removeprefix("student."): scale for name, scale in scales.items()} == alone


def test_the_extra_large_replknet_decays_by_stages() -> None:
    _, scales = scales_of(recipe("replknet_xl_megdata73m_to_in1k_320"))
    for name, scale in scales.items():
        stage = re.match(r"stages\.(\d)\.", name)
        distance = 5 if name.startswith("stem.") else 0 if stage is None else 4 - int(stage[1])
        assert scale == pytest.approx(0.4**distance), name


def test_stages_of_a_model_without_groups_are_refused() -> None:
    config = OptimizerConfig(layer_decay=0.5, layer_decay_by="stage")
    sentence = r"Expected a model with group_matcher\(\) for a decay by stages, but got Linear: use --optimizer"
    with pytest.raises(InputError, match=sentence):
        parameter_groups(nn.Linear(2, 2), config)
