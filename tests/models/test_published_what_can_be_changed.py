from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.architectures import ARCHITECTURES, Architecture
from torch import Tensor

from widefield._core.errors import InputError
from widefield.checkpoints.files import write_weights
from widefield.checkpoints.layouts import in_layout
from widefield.models.published import load_published
from widefield.nn import ConvNorm2d, ReparamConv2d
from widefield.reparam import fold

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def noise(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))


def equal(actual: dict[str, Tensor], expected: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> bool:
    names = [name for name in expected if name not in but]
    return all(torch.equal(actual[name], expected[name]) for name in names)


HEAD = ("head.fc.weight", "head.fc.bias")


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_checkpoint_becomes_its_network_in_its_form(architecture: Architecture, tmp_path: Path) -> None:
    source = architecture.model()
    x = noise(architecture.settings.get("in_chans", 3))
    path = tmp_path / "w.pth"
    torch.save({"model": architecture.published(), "epoch": 3}, path)
    model = load_published(path)
    assert not any(module.training for module in model.modules())
    assert list(model.state_dict()) == list(source.state_dict())
    assert equal(model.state_dict(), source.state_dict())
    assert torch.equal(model(x), source(x))
    if architecture.family != "slak":
        merged = load_published(architecture.published_merged())
        torch.testing.assert_close(merged(x), source(x), rtol=1e-4, atol=1e-4)
    fold(source)
    write_weights(tmp_path / "w.safetensors", source.state_dict())
    ours = load_published(tmp_path / "w.safetensors")
    assert list(ours.state_dict()) == list(source.state_dict())
    assert torch.equal(ours(x), source(x))


@torch.no_grad()
def test_a_network_may_be_merged_in_part() -> None:
    # The authors' "deep_fuse_BN" leaves the norms before convolutions.
    source = BY_NAME["replknet-wide"].model()
    expected = source(noise(1))
    fold(source, where=lambda _, module: isinstance(module, ConvNorm2d | ReparamConv2d))
    published = in_layout(source.state_dict(), "replknet", "official")
    assert "stages.0.blocks.0.prelkb_bn.weight" in published
    model = load_published(published)
    assert model.state_dict().keys() == source.state_dict().keys()
    torch.testing.assert_close(model(noise(1)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["replknet", "slak", "unireplknet-without"])
def test_another_number_of_classes_keeps_every_weight_but_the_head(name: str) -> None:
    source = BY_NAME[name].model().state_dict()
    published = BY_NAME[name].published()
    model = load_published(published, num_classes=7)
    assert model.get_classifier().out_features == 7
    assert equal(model.state_dict(), source, but=HEAD)
    assert load_published(published, num_classes=11).head.fc.weight.equal(source["head.fc.weight"])
    bare = load_published({key: value.double() for key, value in published.items()}, num_classes=0)
    assert bare(noise().double()).shape == (2, 24)
    double = load_published({key: value.double() for key, value in published.items()}, num_classes=2)
    assert double(noise().double()).dtype == torch.float64


@pytest.mark.parametrize("name", ["replknet", "slak", "unireplknet-without"])
def test_other_channels_are_converted_as_timm_does_it(name: str) -> None:
    architecture = BY_NAME[name]
    source = architecture.model().state_dict()
    first = "stem.0.conv.weight" if name == "replknet" else "stem.0.weight"
    model = load_published(architecture.published(), in_chans=1)
    torch.testing.assert_close(model.state_dict()[first], source[first].sum(1, keepdim=True))
    assert equal(model.state_dict(), source, but=(first,))
    text = "Expected a checkpoint for images of 3 channels to convert to others, but got one for 4: use in_chans=4."
    with pytest.raises(InputError, match=re.escape(text)):
        load_published(BY_NAME["unireplknet"].published(), in_chans=3)


def test_settings_that_have_no_weights_are_passed_on() -> None:
    published = BY_NAME["slak"].published()
    model = load_published(published, drop_path_rate=0.3, drop_rate=0.1, global_pool="max", dtype=torch.float64)
    assert model.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(TypeError, match="unexpected keyword argument 'drop_paht'"):
        load_published(published, drop_paht=0.1)
    text = "Expected settings that the weights of the checkpoint fit, but got kernel_sizes=(51, 13, 5, 9), with which"
    with pytest.raises(InputError, match=re.escape(text)):
        load_published(published, kernel_sizes=(51, 13, 5, 9))


def test_a_state_dict_is_copied_and_left_as_it_is() -> None:
    published = BY_NAME["slak"].published()
    before = {key: value.clone() for key, value in published.items()}
    model = load_published(published)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert equal(published, before)


def test_a_backbone_has_neither_classifier_nor_norm_unless_they_are_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("replknet", "unireplknet-without"):
        source = BY_NAME[name].model()
        kept = {key: value for key, value in source.state_dict().items() if not key.startswith(("head.", "norm."))}
        nested = in_layout(kept, BY_NAME[name].family, "backbone") | {"decode_head.conv.weight": torch.empty(3)}
        model = load_published({"state_dict": nested})
        assert model.state_dict().keys() == kept.keys()
        expected = source.forward_intermediates(noise(), intermediates_only=True)
        actual = model.forward_intermediates(noise(), intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert caplog.messages == []
        with caplog.at_level(logging.WARNING):
            classifier = load_published(nested, num_classes=5)
        assert caplog.messages == ["the checkpoint has no norm: new ones are made"]
        caplog.clear()
        assert equal(classifier.state_dict(), kept)
        assert classifier(noise()).shape == (2, 5)


def test_norms_of_features_are_added_and_dropped_on_request() -> None:
    published = BY_NAME["slak-plain"].published()
    without = load_published(published, feature_norms=False)
    assert not any(key.startswith("feature_norms.") for key in without.state_dict())
    fresh = load_published(BY_NAME["slak"].published(), feature_norms=True)
    assert fresh.state_dict()["feature_norms.2.weight"].tolist() == [1.0] * 16
    assert (
        load_published(BY_NAME["replknet"].published(), feature_norms=True).feature_norms[0].running_var.tolist()
        == [1.0] * 8
    )


def test_the_moving_average_is_taken_on_request(tmp_path: Path) -> None:
    published = BY_NAME["slak"].published()
    average = {key: value + 1 for key, value in published.items()}
    torch.save({"model": published, "model_ema": average}, tmp_path / "w.pth")
    models: dict[Any, Any] = {choice: load_published(tmp_path / "w.pth", weights=choice) for choice in ("auto", "ema")}
    assert models["auto"].head.fc.bias.equal(published["head.bias"])
    assert models["ema"].head.fc.bias.equal(average["head.bias"])


def test_a_published_variant_knows_its_preprocessing() -> None:
    with torch.device("meta"):
        state = timm.create_model("replknet_xl").state_dict()
    published = in_layout(dict(state), "replknet", "official")
    model = load_published(published)
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
