from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.architectures import ARCHITECTURES, Architecture
from timm.data import ImageNetInfo
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._pretrained import PretrainedCfg
from torch import Tensor

import widefield.models  # noqa: F401 - registers the models
from widefield._core.errors import InputError
from widefield.checkpoints.layouts import in_layout
from widefield.models._pretrained import check_source, pretrained_filter
from widefield.models.cards import CARDS, CLASS_LISTS, cards_of, facts_of, published_cfgs

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
ALL = [(family, card) for family, cards in CARDS.items() for card in cards]


@pytest.mark.parametrize("family", CARDS)
def test_timm_takes_the_configurations(family: str) -> None:
    given = published_cfgs(family)
    made = generate_default_cfgs(given)
    assert {f"{name}.{tag}" for name, default in made.items() for tag in default.tags} == set(given)
    for name, config in given.items():
        whole = PretrainedCfg(**config)
        assert whole.license in ("mit", "apache-2.0")
        size = whole.input_size[-1]
        assert whole.pool_size == (size // 32, size // 32)
        assert whole.origin_url
        assert whole.origin_url.startswith("https://")
        assert (whole.crop_pct, whole.crop_mode) == ((1.0, "squash") if size == 384 else (0.875, "center"))
        assert timm.is_model(name.split(".")[0])
    model = timm.create_model(next(iter(given)).split(".")[0], device="meta")
    parts = dict(model.named_modules())
    assert isinstance(parts[facts_of(family).first_conv], torch.nn.Conv2d)
    assert {config["classifier"] for config in given.values()} == {"head.fc"}
    assert parts["head.fc"] is model.get_classifier()


def test_every_card_says_where_its_file_lies() -> None:
    for _, card in ALL:
        assert card.source.startswith("https://")
        assert card.is_fetched == (card.hub_id is not None or card.url is not None)
        # A score is of an ImageNet-1K classifier.
        assert (card.top1 is not None) == (card.num_classes == 1000)
        assert (card.hub_id is None) == (card.hub_file is None)
    assert len({card.name for _, card in ALL}) == len({card.source for _, card in ALL}) == len(ALL) == 26
    tiny = cards_of("unireplknet_t")[0]
    assert tiny.source.endswith("/DingXiaoH/UniRepLKNet/blob/main/unireplknet_t_in1k_224_acc83.21.pth")
    assert published_cfgs("unireplknet")["unireplknet_t.in1k"]["hf_hub_id"] == "DingXiaoH/UniRepLKNet"
    assert cards_of("replknet_nano") == ()


def test_the_lists_of_classes_are_timms() -> None:
    for count, name in CLASS_LISTS.items():
        assert ImageNetInfo(name).num_classes() == count


def test_a_family_without_published_checkpoints_is_refused() -> None:
    with pytest.raises(InputError, match="Expected the name of a family with published checkpoints, but got 'pelk'"):
        published_cfgs("pelk")
    assert facts_of("slak").licence == "mit"


def made(architecture: Architecture, source: dict[str, Any], **changes: Any) -> Any:
    """A network as an entry point makes it, from a configuration that overrides where the weights lie."""
    model = architecture.model()
    settings = {"channels": (8, 12, 16, 24), "depths": (1, 2, 3, 1), **architecture.settings, **changes}
    config = {**published_cfgs(architecture.family)[CARDS[architecture.family][0].name], "num_classes": 11, **source}
    torch.manual_seed(3)
    return build_model_with_cfg(
        type(model),
        CARDS[architecture.family][0].variant,
        True,
        pretrained_cfg=config,
        pretrained_filter_fn=pretrained_filter,
        **{"num_classes": 11, **settings},
    ).eval()


def equal(actual: dict[str, Tensor], expected: dict[str, Tensor], *, but: tuple[str, ...] = ()) -> bool:
    return all(torch.equal(actual[name], expected[name]) for name in expected if not name.startswith(but))


@pytest.mark.parametrize("name", ["replknet", "replknet-features", "slak", "slak-plain", "unireplknet-without"])
def test_timm_loads_a_published_file_for_any_number_of_classes(name: str, tmp_path: Path) -> None:
    architecture = BY_NAME[name]
    own = architecture.model().state_dict()
    path = tmp_path / "w.pth"
    torch.save({"model": architecture.published(), "epoch": 3}, path)
    same = made(architecture, {"file": str(path)})
    assert equal(same.state_dict(), own)
    other = made(architecture, {"file": str(path)}, num_classes=7)
    assert other.get_classifier().out_features == 7
    assert equal(other.state_dict(), own, but=("head.",))
    grey = made(architecture, {"file": str(path)}, in_chans=1)
    first = "stem.0.conv" if name.startswith("replknet") else "stem.0"
    assert equal(grey.state_dict(), own, but=(f"{first}.weight",))
    torch.testing.assert_close(grey.state_dict()[f"{first}.weight"], own[f"{first}.weight"].sum(1, keepdim=True))


def test_what_the_hub_gives_may_still_be_wrapped() -> None:
    architecture = BY_NAME["slak"]
    own = architecture.model().state_dict()
    loaded = made(architecture, {"state_dict": {"model": architecture.published(), "model_ema": None}})
    assert equal(loaded.state_dict(), own)


def test_the_copies_of_open_mmlab_are_loaded() -> None:
    architecture = BY_NAME["replknet"]
    loaded = made(architecture, {"state_dict": {"state_dict": architecture.published("mmpretrain")}})
    assert equal(loaded.state_dict(), architecture.model().state_dict())


def test_a_head_for_other_classes_than_the_configuration_says_starts_new(caplog: pytest.LogCaptureFixture) -> None:
    architecture = BY_NAME["slak"]
    with caplog.at_level(logging.WARNING):
        model = made(architecture, {"state_dict": architecture.published(), "num_classes": 5}, num_classes=5)
    assert equal(model.state_dict(), architecture.model().state_dict(), but=("head.",))
    text = "the pretrained checkpoint has no head.fc.bias, head.fc.weight for this model: these start new"
    assert text in caplog.messages


def test_the_backbone_of_a_larger_model_gives_features(caplog: pytest.LogCaptureFixture) -> None:
    architecture = BY_NAME["unireplknet-without"]
    own = {k: v for k, v in architecture.model().state_dict().items() if not k.startswith(("norm.", "head."))}
    nested = in_layout(own, "unireplknet", "backbone") | {"decode_head.conv.weight": torch.empty(3)}
    with caplog.at_level(logging.WARNING):
        model = made(architecture, {"state_dict": {"state_dict": nested}}, num_classes=0)
    assert equal(model.state_dict(), own)
    assert any("has no norm.bias, norm.weight for this model" in message for message in caplog.messages)
    without = made(architecture, {"state_dict": {"state_dict": nested}}, num_classes=0, feature_norms=False)
    assert equal(without.state_dict(), own, but=("feature_norms.",))
    more = made(BY_NAME["slak"], {"state_dict": BY_NAME["slak"].published()}, feature_norms=True)
    assert more.state_dict()["feature_norms.3.weight"].tolist() == [1.0] * 24


def test_timm_is_not_left_to_overlook_damage() -> None:
    architecture = BY_NAME["unireplknet-without"]
    for key in ("stages.1.0.act.1.beta", "norm.weight"):
        state = {name: value for name, value in architecture.published().items() if name != key}
        with pytest.raises(InputError, match=re.escape(f"the pretrained checkpoint with no {key!r}: copy")):
            made(architecture, {"state_dict": state}, num_classes=7)
    with pytest.raises(InputError, match=r"'stages.2.0.dwconv.lk_origin.weight' of shape \(16, 1, 15, 15\) instead of"):
        made(architecture, {"state_dict": architecture.published()}, kernel_sizes=(0, (9, 11), (13, 0, 29), 0))


def test_a_merged_checkpoint_is_for_the_loader_that_can_merge() -> None:
    text = (
        "Expected a branched checkpoint, but got the pretrained checkpoint of the published UniRepLKNet, which is "
        "merged: load it with widefield.load_published."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        made(BY_NAME["unireplknet-without"], {"state_dict": BY_NAME["unireplknet-without"].published_merged()})


def test_weights_that_timm_cannot_fetch_are_told_with_their_page() -> None:
    given = published_cfgs("slak")["slak_t.in1k"]
    text = (
        "Expected a checkpoint that can be fetched, but got slak_t, which is published for download by hand at "
        "https://drive.google.com/file/d/1Iut2f5FMS_77jGPYoUJDQzDIXOsax1u4/view: pass its file with "
        "pretrained_cfg_overlay=dict(file=PATH)."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        check_source("slak_t", True, {"pretrained_cfg": given})
    check_source("slak_t", False, {"pretrained_cfg": given})
    check_source("slak_t", True, {"pretrained_cfg": given, "pretrained_cfg_overlay": {"file": "x.pth"}})
    check_source("unireplknet_t", True, {"pretrained_cfg": published_cfgs("unireplknet")["unireplknet_t.in1k"]})
    text = "of which nobody published weights: use pretrained=False."
    with pytest.raises(InputError, match=re.escape(text)):
        check_source("replknet_nano", True, {})
