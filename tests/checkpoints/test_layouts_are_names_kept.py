from __future__ import annotations

import re
from typing import get_args

import pytest
import torch
from support.architectures import ARCHITECTURES, Architecture
from support.golden import record, state
from torch import Tensor

from widefield._core.errors import InputError
from widefield.checkpoints.layouts import LAYOUTS, Layout, in_layout, name_layout
from widefield.checkpoints.recognise import recognise

RECORDS = (
    "replknet_3b",
    "replknet_31b",
    "slak_t",
    "unireplknet_a",
    "unireplknet_t",
    "mm_mmpretrain_replknet_31b",
    "mm_upernet_replknet_31b",
    "mm_upernet_unireplknet_t",
    "mm_cascade_unireplknet_t",
)


def test_the_layouts_are_those_of_the_type() -> None:
    assert get_args(Layout) == LAYOUTS


@pytest.mark.parametrize("name", RECORDS)
def test_published_names_become_ours_and_published_again(name: str) -> None:
    values = record(name)
    for entries in (values["state"], *([values["merged"]["state"]] if "merged" in values else [])):
        published = {key: torch.empty(shape, device="meta") for key, shape in entries}
        found = recognise(published)
        own = [key for key in published if key.split(".")[0] not in found.left_out]
        again = in_layout(found.ours(published), found.family, found.layout)
        assert list(again) == own
        assert all(again[key] is published[key] for key in own)


@pytest.mark.parametrize("name", ["unireplknet_a", "mm_mmpretrain_replknet_31b"])
def test_values_survive_the_way_there_and_back_bit_for_bit(name: str) -> None:
    drawn: dict[str, Tensor] = state(record(name)["state"][:200])
    naming = name_layout(drawn)
    ours = {our: drawn[theirs] for our, theirs in naming.names.items()}
    again = in_layout(ours, naming.family, naming.layout)
    assert list(again) == list(drawn)
    assert all(torch.equal(again[key], drawn[key]) for key in drawn)


def test_mmpretrain_and_the_authors_name_the_same_network() -> None:
    theirs, others = (dict(record(name)["state"]) for name in ("replknet_31b", "mm_mmpretrain_replknet_31b"))
    ours = {our: theirs[key] for our, key in name_layout(theirs).names.items()}
    assert in_layout(ours, "replknet", "mmpretrain") == others


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_backbone_in_a_larger_model_keeps_its_names(architecture: Architecture) -> None:
    ours = architecture.model(num_classes=0).state_dict()
    nested = in_layout(ours, architecture.family, "backbone")
    assert all(key.startswith("backbone.") for key in nested)
    naming = name_layout([*nested, "decode_head.conv.weight", "decode_head.conv.bias", "scale"])
    assert naming.layout == "backbone"
    assert naming.left_out == {"decode_head": 2, "scale": 1}
    assert naming.names == dict(zip(ours, nested, strict=True))
    assert in_layout(ours, architecture.family, "widefield") == ours


def test_names_without_a_rule_are_kept_apart() -> None:
    naming = name_layout([*ARCHITECTURES[0].published(), "neck.weight"])
    assert naming.unmapped == ("neck.weight",)
    assert naming.title == "the published RepLKNet"
    nested = name_layout([*ARCHITECTURES[0].published("mmpretrain"), "backbone.neck.weight"])
    assert nested.unmapped == ("backbone.neck.weight",)
    assert nested.title == "mmpretrain's RepLKNet"


def test_mmpretrain_has_no_other_family() -> None:
    text = (
        "Expected a RepLKNet, the one of these families that mmpretrain has, but got a SLaK: write it with the "
        "authors' names, as official."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        in_layout({"norm.weight": 1}, "slak", "mmpretrain")


def test_norms_of_features_have_no_place_beside_mmpretrains_last_one() -> None:
    ours = ARCHITECTURES[2].model().state_dict()
    with pytest.raises(InputError, match=re.escape("a second one for 'backbone.stages.3.norm.weight'")):
        in_layout(ours, "replknet", "mmpretrain")
