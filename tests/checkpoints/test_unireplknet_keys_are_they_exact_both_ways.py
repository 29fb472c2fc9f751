from __future__ import annotations

import re

import pytest
import torch
from support.golden import record, state
from support.random_statistics import randomise

from widefield._core.errors import InputError
from widefield.checkpoints.unireplknet import RULES, is_published, to_published, to_widefield
from widefield.models.unireplknet import UniRepLKNet
from widefield.nn.dilated_reparam_conv import PUBLISHED_BRANCHES
from widefield.reparam import fold


@pytest.mark.parametrize("name", ["unireplknet_a", "unireplknet_t"])
@pytest.mark.parametrize("form", ["branched", "merged"])
def test_published_keys_become_ours_and_published_again(name: str, form: str) -> None:
    values = record(name)
    entries = values["state"] if form == "branched" else values["merged"]["state"]
    published = {key: torch.empty(shape, device="meta") for key, shape in entries}
    assert is_published(published)
    ours = to_widefield(published)
    again = to_published(ours)
    assert list(again) == list(published)
    assert all(again[key] is published[key] for key in published)
    assert not is_published(ours)
    assert to_widefield(ours) == ours


@pytest.mark.parametrize("form", ["branched", "merged"])
def test_the_values_survive_the_way_there_and_back_bit_for_bit(form: str) -> None:
    values = record("unireplknet_a")
    entries = values["state"] if form == "branched" else values["merged"]["state"]
    drawn = state(entries[:100])
    again = to_published(to_widefield(drawn))
    assert list(again) == list(drawn)
    assert all(torch.equal(again[key], drawn[key]) for key in drawn)


def small(**options: object) -> UniRepLKNet:
    torch.manual_seed(0)
    sizes = (0, (3, 5), tuple(PUBLISHED_BRANCHES)[1:], 31)
    return UniRepLKNet((8, 8, 8, 8), (1, 2, len(sizes[2]), 1), sizes, num_classes=3, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["nothing", "branches", "everything"])
@pytest.mark.parametrize("feature_norms", [False, True])
def test_every_kernel_size_and_form_has_published_names_and_loads_again(where: str, feature_norms: bool) -> None:
    model = randomise(small(feature_norms=feature_norms))
    for _ in range(0 if where == "nothing" else 1):
        fold(model, where=None if where == "everything" else lambda name, _: name.endswith("large_kernel"))
    ours = model.state_dict()
    theirs = to_published(ours)
    assert is_published(theirs)
    again = to_widefield(theirs)
    assert list(again) == list(ours)
    assert all(torch.equal(again[key], ours[key]) for key in ours)
    parts = {key.split(".")[0] for key in theirs}
    downstream = {f"norm{stage}" for stage in range(4)} if feature_norms else set()
    assert parts == {"downsample_layers", "stages", "norm", "head"} | downstream
    large = {key for key in theirs if key.startswith("stages.2.5.dwconv.")}
    if where == "nothing":
        for size, dilation in PUBLISHED_BRANCHES[17]:
            assert f"stages.2.5.dwconv.dil_conv_k{size}_{dilation}.weight" in large
            assert f"stages.2.5.dwconv.dil_bn_k{size}_{dilation}.running_var" in large
    else:
        assert large == {"stages.2.5.dwconv.lk_origin.weight", "stages.2.5.dwconv.lk_origin.bias"}
    assert not any(key.startswith("stages.0.0.dwconv") for key in theirs)


def test_every_rule_is_of_use() -> None:
    model = small(feature_norms=True)
    keys = set(model.state_dict())
    fold(randomise(model))
    keys |= set(model.state_dict())
    unused = [rule for rule in RULES if not any(rule.rename(key, to_ours=False) for key in keys)]
    assert unused == []


def test_a_key_without_a_rule_is_named() -> None:
    text = (
        "Expected a state dict of the published UniRepLKNet, but got 2 keys that it does not have, "
        "the first 'stages.0.0.dwconv.lk_small.weight': check which model the file belongs to."
    )
    keys = ["stages.0.0.pwconv1.1.weight", "stages.0.0.dwconv.lk_small.weight", "neck.weight"]
    with pytest.raises(InputError, match=re.escape(text)):
        to_widefield(dict.fromkeys(keys))
    text = "Expected a state dict of our UniRepLKNet, but got 1 keys that it does not have, the first 'neck.weight'"
    with pytest.raises(InputError, match=re.escape(text)):
        to_published(dict.fromkeys(["neck.weight"]))
    with pytest.raises(InputError, match=r"the first 'stages\.0\.downsample\.0\.weight'"):
        to_published(dict.fromkeys(["stages.0.downsample.0.weight"]))


def test_other_families_are_not_taken_for_this_one() -> None:
    assert not is_published(dict(record("replknet_3b")["state"]))
    assert not is_published({"downsample_layers.0.0.weight": None, "stages.0.0.pwconv1.weight": None})
