from __future__ import annotations

import re

import pytest
import torch
from support.architectures import ARCHITECTURES, Architecture
from support.golden import record
from torch import Tensor

from widefield._core.errors import InputError
from widefield.checkpoints.architecture import form_of
from widefield.checkpoints.recognise import recognise
from widefield.reparam import fold

_31B = {
    "channels": (128, 256, 512, 1024),
    "depths": (2, 2, 18, 2),
    "kernel_sizes": (31, 29, 27, 13),
    "small_kernel_size": 5,
    "hidden_ratio": 1.0,
    "ffn_ratio": 4.0,
    "in_chans": 3,
    "num_classes": 1000,
    "feature_norms": False,
}
_UNI_T = {
    "channels": (80, 160, 320, 640),
    "depths": (3, 3, 18, 3),
    "kernel_sizes": ((3,) * 3, (13,) * 3, (13, 3) * 9, (13,) * 3),
    "ffn_ratio": 4.0,
    "layer_scale": 1e-6,
    "in_chans": 3,
    "num_classes": 1000,
    "feature_norms": False,
}
_SLAK_T = {
    "channels": (124, 249, 499, 998),
    "depths": (3, 3, 9, 3),
    "kernel_sizes": (51, 49, 47, 13),
    "small_kernel_size": 5,
    "decomposed": True,
    "ffn_ratio": 4.0,
    "layer_scale": 1e-6,
    "in_chans": 3,
    "num_classes": 1000,
    "feature_norms": False,
}
_SEGMENTATION = {"decode_head": 74, "auxiliary_head": 8}
_DETECTION = {"neck": 16, "rpn_head": 6, "roi_head": 126}
_FEATURES = {"num_classes": 0, "feature_norms": True}


def shapes(entries: list[tuple[str, list[int]]]) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in entries}


@pytest.mark.parametrize(
    ("name", "layout", "kwargs", "left_out"),
    [
        ("replknet_31b", "official", _31B, {}),
        ("replknet_3b", "official", {**_31B, "kernel_sizes": (3,) * 4, "small_kernel_size": None}, {}),
        ("slak_t", "official", _SLAK_T, {}),
        ("unireplknet_t", "official", _UNI_T, {}),
        ("mm_mmpretrain_replknet_31b", "mmpretrain", _31B, {}),
        ("mm_upernet_replknet_31b", "backbone", {**_31B, "num_classes": 0}, _SEGMENTATION),
        ("mm_upernet_unireplknet_t", "backbone", {**_UNI_T, **_FEATURES}, _SEGMENTATION),
        ("mm_cascade_unireplknet_t", "backbone", {**_UNI_T, **_FEATURES}, _DETECTION),
    ],
)
def test_a_published_state_dict_is_recognised_in_both_forms(
    name: str, layout: str, kwargs: dict[str, object], left_out: dict[str, int]
) -> None:
    values = record(name)
    found = recognise(shapes(values["state"]))
    assert (found.layout, found.form, dict(found.left_out)) == (layout, "branched", left_out)
    assert found.model_kwargs == kwargs
    assert found.naming.unmapped == ()
    merged = values.get("merged")
    if merged:
        found = recognise(shapes(merged["state"]))
        assert (found.layout, found.form, dict(found.left_out)) == (layout, "merged", left_out)
        # Which small kernels there were is gone.
        gone = {"small_kernel_size": None} if "small_kernel_size" in kwargs else {}
        assert found.model_kwargs == {**kwargs, **gone}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_any_widths_depths_and_kernel_sizes_are_found_out(architecture: Architecture) -> None:
    found = recognise(architecture.published())
    assert (found.family, found.layout, found.form) == (architecture.family, "official", "branched")
    wanted = {"channels": (8, 12, 16, 24), "depths": (1, 2, 3, 1), "num_classes": 11, **architecture.settings}
    assert {name: found.model_kwargs[name] for name in wanted} == wanted
    ours = architecture.model()
    found = recognise(ours.state_dict())
    assert (found.family, found.layout, found.form) == (architecture.family, "widefield", "branched")
    assert {name: found.model_kwargs[name] for name in wanted} == wanted
    fold(ours)
    found = recognise(ours.state_dict())
    assert (found.family, found.layout, found.form) == (architecture.family, "widefield", "merged")
    kept = wanted.keys() - {"small_kernel_size", "layer_scale"}
    assert {name: found.model_kwargs[name] for name in kept} == {name: wanted[name] for name in kept}


def test_the_rules_without_a_name_are_told() -> None:
    found = recognise(shapes(record("unireplknet_a")["state"]))
    assert [rule.theirs for rule in found.naming.unused] == ["stages.<s>.<b>.dwconv.bias", "norm<i>.<rest>"]


def test_what_is_none_of_the_families_is_refused() -> None:
    text = (
        "Expected weights of a RepLKNet, SLaK or UniRepLKNet, but got x.pth with other names, such as 'conv1.weight', "
        "'fc.weight': check which model they belong to."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        recognise({"conv1.weight": torch.empty(3), "fc.weight": torch.empty(3)}, "x.pth")


def test_a_part_that_is_not_there_at_all_is_named() -> None:
    state = ARCHITECTURES[0].published()
    text = "Expected a complete state dict of the published RepLKNet, but got one without the width of stage 2: copy"
    with pytest.raises(InputError, match=re.escape(text)):
        recognise({key: value for key, value in state.items() if not key.startswith("stages.2.")})


def test_kernels_that_are_not_there_are_guessed_so_that_they_can_be_named() -> None:
    state = {key: value for key, value in ARCHITECTURES[6].published().items() if "dwconv.lk_origin" not in key}
    assert recognise(state).model_kwargs["kernel_sizes"] == ((3,), (13, 3), (29, 5, 7), (17,))
    state = {key: value for key, value in ARCHITECTURES[0].published().items() if "lkb_origin" not in key}
    assert recognise(state).model_kwargs["kernel_sizes"] == (13, 13, 13, 13)


def test_two_tensors_that_disagree_are_both_named_if_no_third_decides() -> None:
    state = ARCHITECTURES[3].published()
    state["head.bias"] = torch.empty(12)
    text = (
        "Expected a state dict of the published SLaK that agrees on the number of classes, but got 'head.weight' "
        "(11, 24) beside 'head.bias' (12,): copy or download it again."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        recognise(state)


def test_inner_widths_without_one_ratio_are_refused() -> None:
    state = ARCHITECTURES[3].published()
    for key, value in state.items():
        if key.startswith("stages.1.") and "pwconv" in key and value.dim() == 2:
            state[key] = torch.empty([2 * size if size == 48 else size for size in value.shape])
    with pytest.raises(InputError, match=r"with one ratio of inner width to width, but got widths \[8, 12, 16, 24\]"):
        recognise(state)


def test_the_form_is_told_by_what_folding_leaves() -> None:
    assert form_of({"stem.0.conv.bias": (8,)}, "replknet") == "merged"
    assert form_of({"stages.0.blocks.0.fc2.bias": (8,)}, "unireplknet") == "merged"
    assert form_of({"stages.0.blocks.0.fc2.bias": (8,)}, "slak") == "branched"
