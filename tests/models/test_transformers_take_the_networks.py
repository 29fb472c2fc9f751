from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import FAMILIES, Family, images
from support.random_statistics import randomise

from widefield import list_models

# What transformers asks of a network of timm: as a backbone, and wrapped as a classifier. It is imported within the
# tests, which is slow; without it they fail.
BY_DAY = "replknet_nano"
of_each_family = pytest.mark.parametrize(
    "family",
    [f if f.variant == BY_DAY else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
    ids=str,
)
WHOLE = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in list_models()])


def backbone_of(name: str, **options: Any) -> Any:
    from transformers import TimmBackbone, TimmBackboneConfig

    torch.manual_seed(0)
    return randomise(TimmBackbone(TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, **options)))


def classifier_of(family: Family, **options: Any) -> Any:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=family.variant, model_args=dict(family.options), **options)
    return randomise(TimmWrapperForImageClassification(config))


@of_each_family
@torch.no_grad()
def test_a_backbone_returns_maps_and_hidden_states(family: Family) -> None:
    x = images()
    whole = backbone_of(family.variant, out_indices=[0, 1, 2, 3])
    stages = whole(x).feature_maps
    assert [y.shape[1] for y in stages] == whole.channels == whole.num_features
    assert whole.stage_names == [f"stages.{index}" for index in range(4)]
    last = backbone_of(family.variant)
    for _ in range(2):
        maps = last(x).feature_maps
        assert len(maps) == 1
        torch.testing.assert_close(maps[0], stages[3])
        hidden = last(x, output_hidden_states=True)
        torch.testing.assert_close(list(hidden.hidden_states), list(stages))
        torch.testing.assert_close(list(hidden.feature_maps), list(maps))
    some = backbone_of(family.variant, out_indices=[0, 2])
    assert some.out_features == ["stages.0", "stages.2"]
    hidden = some(x, output_hidden_states=True)
    torch.testing.assert_close(list(hidden.hidden_states), list(stages[:3]))
    torch.testing.assert_close(list(hidden.feature_maps), [stages[0], stages[2]])
    plain = some(x, return_dict=False)
    torch.testing.assert_close(list(plain[0]), [stages[0], stages[2]])


@WHOLE
@torch.no_grad()
def test_every_variant_is_a_backbone(name: str) -> None:
    from transformers import AutoBackbone, TimmBackboneConfig

    options = {"num_channels": 1, "output_stride": 32, "use_pretrained_backbone": False}
    config = TimmBackboneConfig(backbone=name, out_indices=[1, 3], **options)
    backbone = AutoBackbone.from_config(config).eval()
    outputs = backbone(images(1, 1, 64, 64), output_hidden_states=True)
    assert [y.shape[1] for y in outputs.feature_maps] == backbone.channels
    assert [tuple(y.shape[1:]) for y in outputs.hidden_states] == [
        (channels, 16 // 2**level, 16 // 2**level) for level, channels in enumerate(backbone.num_features)
    ]


@of_each_family
def test_a_backbone_is_trained_frozen_and_stored(family: Family, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import TimmBackbone, TimmBackboneConfig

    backbone, x = backbone_of(family.variant, out_indices=[1, 3]), images()
    expected = [y.detach() for y in backbone(x).feature_maps]
    backbone.save_pretrained(tmp_path)
    again = TimmBackbone(TimmBackboneConfig.from_pretrained(tmp_path))
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(list(again.eval()(x).feature_maps), expected)
    again.freeze_batch_norm_2d()
    maps = again.train()(x).feature_maps
    torch.testing.assert_close(list(maps), expected, rtol=1e-3, atol=1e-4)
    sum(y.square().mean() for y in maps).backward()
    assert [name for name, parameter in again.named_parameters() if parameter.grad is None] == []


# transformers is about to rename what turns checkpointing on.
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@of_each_family
def test_a_classifier_is_trained_and_stored(family: Family, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification, TimmWrapperModel

    model, x, labels = classifier_of(family, num_labels=5), images(), torch.tensor([0, 4])
    with torch.no_grad():
        expected = model(x, labels=labels, output_hidden_states=True)
        assert [y.shape[1] for y in expected.hidden_states] == list(family.channels)
        assert len(model(x, output_hidden_states=[1]).hidden_states) == 1
        torch.testing.assert_close(expected.loss, torch.nn.functional.cross_entropy(expected.logits, labels))
        model.save_pretrained(tmp_path)
        again = AutoModelForImageClassification.from_pretrained(tmp_path)
        for _ in range(2):
            torch.testing.assert_close(again.eval()(x).logits, expected.logits)
        bare = TimmWrapperModel.from_pretrained(tmp_path).eval()(x)
        assert bare.pooler_output.shape == (2, family.features)
        torch.testing.assert_close(bare.last_hidden_state, model.timm_model.forward_features(x))
        other = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
        assert other(x).logits.shape == (2, 3)
    again.gradient_checkpointing_enable()
    again.train()(x, labels=labels).loss.backward()
    assert [name for name, parameter in again.named_parameters() if parameter.grad is None] == []
