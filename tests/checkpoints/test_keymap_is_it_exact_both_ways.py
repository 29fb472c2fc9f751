from __future__ import annotations

import re

import pytest
import timm
import torch
from support.golden import record, state

import widefield.models  # noqa: F401 - registers the models
from widefield._core.errors import InputError
from widefield.checkpoints.keymap import Rule, rename
from widefield.checkpoints.replknet import is_published, to_published, to_widefield
from widefield.nn import DepthwiseConv2d, ReparamConv2d


@pytest.mark.parametrize("name", ["replknet_3b", "replknet_31b"])
@pytest.mark.parametrize("form", ["branched", "merged"])
def test_published_keys_become_ours_and_published_again(name: str, form: str) -> None:
    values = record(name)
    entries = values["state"] if form == "branched" else values["merged"]["state"]
    published = {key: torch.empty(shape, device="meta") for key, shape in entries}
    assert is_published(published)
    ours = to_widefield(published)
    with torch.device("meta"):
        model = timm.create_model(name)
        for layer in model.modules() if form == "merged" else ():
            if isinstance(layer, ReparamConv2d):
                layer.merged = DepthwiseConv2d(layer.channels, layer.kernel_size)
                layer.large = layer.small = None
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    again = to_published(ours)
    assert list(again) == list(published)
    assert all(again[key] is published[key] for key in published)
    assert not is_published(ours)
    assert to_widefield(ours) == ours


def test_the_values_survive_the_way_there_and_back_bit_for_bit() -> None:
    drawn = state(record("replknet_31b")["state"][:60])
    again = to_published(to_widefield(drawn))
    assert list(again) == list(drawn)
    assert all(torch.equal(again[key], drawn[key]) for key in drawn)


def test_a_key_without_a_rule_is_named() -> None:
    values = dict.fromkeys(["stages.0.blocks.0.prelkb_bn.weight", "stages.0.blocks.1.prelkb_bn.weight", "neck.weight"])
    text = (
        "Expected a state dict of the published RepLKNet, but got 2 keys that it does not have, "
        "the first 'stages.0.blocks.1.prelkb_bn.weight': check which model the file belongs to."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        to_widefield(values)
    text = "Expected a state dict of our RepLKNet, but got 1 keys that it does not have, the first 'neck.weight'"
    with pytest.raises(InputError, match=re.escape(text)):
        to_published(dict.fromkeys(["neck.weight"]))


def test_two_keys_with_one_name_are_refused() -> None:
    rules = (Rule("a.<rest>", "c.<rest>"), Rule("b.<rest>", "c.<rest>"))
    text = (
        "Expected a state dict of something with one tensor for each name, "
        "but got a second one for 'c.x' ('b.x'): check how the file was written."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        rename({"a.x": 1, "b.x": 2}, rules, to_ours=True, source="something")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("t.0.w.bias", "s.1.w.bias"), ("t.9.w.running.mean", "s.10.w.running.mean"), ("u.4.x", "v.4.x")],
)
def test_a_rule_counts_and_knows_parity(theirs: str, ours: str) -> None:
    rules = (Rule("t.<i>.w.<rest>", "s.<i+1>.w.<rest>"), Rule("u.<b even>.<rest>", "v.<b even>.<rest>"))
    assert rename({theirs: 1}, rules, to_ours=True, source="x") == {ours: 1}
    assert rename({ours: 1}, rules, to_ours=False, source="x") == {theirs: 1}


@pytest.mark.parametrize("key", ["s.0.w.bias", "s.x.w.bias", "s.1.w.", "v.3.x", "xs.1.w.bias", "s.1.wabias"])
def test_a_rule_leaves_what_does_not_fit_it(key: str) -> None:
    rules = (Rule("t.<i>.w.<rest>", "s.<i+1>.w.<rest>"), Rule("u.<b even>.<rest>", "v.<b even>.<rest>"))
    with pytest.raises(InputError, match=re.escape(repr(key))):
        rename({key: 1}, rules, to_ours=False, source="x")
