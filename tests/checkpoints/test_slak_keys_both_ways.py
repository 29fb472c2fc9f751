from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from support.golden import record, state
from support.random_statistics import randomise

import widefield.models.slak  # noqa: F401 - registers the models
from widefield._core.errors import InputError
from widefield.checkpoints import replknet
from widefield.checkpoints.slak import is_published, to_published, to_widefield
from widefield.reparam import fold


def small(**options: Any) -> Any:
    sizes = {"channels": (4, 6, 8, 10), "depths": (1, 2, 1, 1), "kernel_sizes": (13, 9, 7, 5)}
    return timm.create_model("slak_t", **{"num_classes": 3, **sizes, **options})


def test_published_keys_become_ours_and_published_again() -> None:
    published = {key: torch.empty(shape, device="meta") for key, shape in record("slak_t")["state"]}
    assert is_published(published)
    ours = to_widefield(published)
    model = timm.create_model("slak_t", device="meta")
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    again = to_published(ours)
    assert list(again) == list(published)
    assert all(again[key] is published[key] for key in published)
    assert not is_published(ours)
    assert to_widefield(ours) == ours


def test_the_values_survive_the_way_there_and_back_bit_for_bit() -> None:
    drawn = state(record("slak_t")["state"][:60])
    again = to_published(to_widefield(drawn))
    assert list(again) == list(drawn)
    assert all(torch.equal(again[key], drawn[key]) for key in drawn)


def test_kernels_without_decomposition_have_names_too() -> None:
    ours = small(decomposed=False).state_dict()
    published = to_published(ours)
    prefix = "stages.1.1.large_kernel."
    assert [key.removeprefix(prefix) for key in published if key.startswith(prefix) and "weight" in key] == [
        "lkb_origin.conv.weight",
        "lkb_origin.bn.weight",
        "small_conv.conv.weight",
        "small_conv.bn.weight",
    ]
    assert is_published(published)
    again = to_widefield(published)
    assert list(again) == list(ours)
    assert all(torch.equal(again[key], ours[key]) for key in ours)


def test_norms_of_a_downstream_backbone_are_those_of_the_features() -> None:
    ours = small(feature_norms=True, num_classes=0).state_dict()
    published = to_published(ours)
    assert {f"norm{index}.{leaf}" for index in range(4) for leaf in ("weight", "bias")} < set(published)
    assert list(to_widefield(published)) == list(ours)


def test_the_names_of_another_version_of_the_code_are_read() -> None:
    ours = small().state_dict()
    other = {re.sub(r"LoRA(\d)", r"Decom\1", key): value for key, value in to_published(ours).items()}
    assert any("Decom2" in key for key in other)
    assert list(to_widefield(other)) == list(ours)


@pytest.mark.parametrize("options", [{}, {"merged_form": "cross"}, {"decomposed": False}])
def test_a_merged_state_is_refused(options: dict[str, Any]) -> None:
    model = randomise(small(**options))
    fold(model)
    text = "Expected a branched SLaK, since the published code has no merged form, but got a merged one (with 'stages."
    with pytest.raises(InputError, match=f"{re.escape(text)}.*merged.*: take the state dict before merging."):
        to_published(model.state_dict())


def test_a_branch_merged_alone_is_refused_as_well() -> None:
    model = randomise(small())
    model.stages[0].blocks[0].large_kernel.tall.reparameterize()
    with pytest.raises(InputError, match=r"a merged one \(with 'stages.0.blocks.0.large_kernel.tall.conv.bias'\)"):
        to_published(model.state_dict())


def test_a_key_without_a_rule_is_named() -> None:
    keys = ["downsample_layers.0.0.weight", "stages.0.0.large_kernel.LoRA3.conv.weight"]
    text = (
        "Expected a state dict of the published SLaK, but got 1 keys that it does not have, "
        "the first 'stages.0.0.large_kernel.LoRA3.conv.weight': check which model the file belongs to."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        to_widefield(dict.fromkeys(keys))
    with pytest.raises(InputError, match=r"Expected a state dict of our SLaK, but got 1 keys .* 'neck.weight'"):
        to_published(dict.fromkeys(["neck.weight"]))


def test_other_families_are_not_taken_for_it() -> None:
    theirs = dict(record("replknet_31b")["state"])
    assert replknet.is_published(theirs)
    assert not is_published(theirs)
    assert not replknet.is_published(dict(record("slak_t")["state"]))
    assert not is_published(dict.fromkeys(["downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"]))
