from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.architectures import ARCHITECTURES, Architecture
from torch import Tensor

from widefield._core.errors import InputError
from widefield.models.published import load_published, read_published

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
UNIREPLKNET, SLAK, REPLKNET = (BY_NAME[name].published() for name in ("unireplknet", "slak", "replknet"))

INTACT: list[tuple[str, dict[str, Tensor]]] = [
    (f"{architecture.name}-{form}", state)
    for architecture in ARCHITECTURES
    for form, state in (
        ("branched", architecture.published()),
        *([("merged", architecture.published_merged())] if architecture.family != "slak" else []),
    )
]


def refused(state: dict[str, Tensor], *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        read_published(state)
    assert str(caught.value).startswith("Expected ")
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_name_is_told() -> None:
    state = {key: value for key, value in UNIREPLKNET.items() if key != "stages.1.0.act.1.beta"}
    text = (
        "Expected a complete state dict of the published UniRepLKNet, but got the state dict with no "
        "'stages.1.0.act.1.beta': copy or download it again, or check which model it belongs to."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        load_published(state)


def test_a_misspelt_name_is_told_with_the_one_that_is_expected() -> None:
    state = {("stages.1.0.gama" if key == "stages.1.0.gamma" else key): value for key, value in SLAK.items()}
    refused(state, "the state dict with 'stages.1.0.gama' where 'stages.1.0.gamma' is expected: copy")
    nested = {f"backbone.{key}": value for key, value in BY_NAME["unireplknet-without"].published().items()}
    nested = {key: value for key, value in nested.items() if ".head." not in key and ".norm." not in key[:14]}
    read_published(nested)
    state = {key.replace("backbone.norm0.", "backbon.norm0."): value for key, value in nested.items()}
    refused(state, "'backbon.norm0.weight' where 'backbone.norm0.weight' is expected; 'backbon.norm0.bias' where")


def test_a_wrong_shape_is_told_with_the_right_one() -> None:
    key = "stages.1.blocks.0.large_kernel.lkb_origin.conv.weight"
    state = {**REPLKNET, key: REPLKNET[key][..., :5]}
    refused(state, f"{key!r} of shape (12, 1, 7, 5) instead of (12, 1, 7, 7)")


def test_names_that_are_too_many_are_told() -> None:
    extra = {f"stages.0.0.extra.{index}": torch.empty(2) for index in range(5)}
    refused({**SLAK, **extra}, "'stages.0.0.extra.0', which it does not have; ", "(and 2 more)")
    fewer = {key: value for key, value in SLAK.items() if not key.startswith("stages.2.1.")}
    refused(fewer, "no 'stages.2.1.large_kernel.LoRA1.conv.weight'", "more)")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_is_missing_misspelt_or_misshapen_is_named(data: st.DataObject) -> None:
    _, intact = data.draw(st.sampled_from(INTACT), label="checkpoint")
    key = data.draw(st.sampled_from(list(intact)), label="key")
    kind = data.draw(st.sampled_from(["missing", "misspelt", "misshapen"]), label="damage")
    state = dict(intact)
    told = [repr(key)]
    if kind == "missing":
        del state[key]
    elif kind == "misspelt":
        parts = key.split(".")
        index = data.draw(st.integers(0, len(parts) - 1), label="part")
        parts[index] += "x"
        state = {(".".join(parts) if name == key else name): value for name, value in intact.items()}
        told.append(repr(".".join(parts)))
    else:
        shape = list(intact[key].shape) or [1]
        axis = data.draw(st.integers(0, len(shape) - 1), label="axis")
        shape[axis] += 1
        state[key] = torch.empty(shape if intact[key].dim() else [1], dtype=intact[key].dtype)
        # One more channel of the image, or a norm's only witness, is a network of its own.
        if key in ("stem.0.conv.weight", "downsample_layers.0.0.weight") and axis == 1:
            return
    refused(state, *told)


def test_a_file_is_named_in_the_message(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    state = {key: value for key, value in SLAK.items() if key != "norm.bias"}
    torch.save({"model": state}, path)
    with pytest.raises(InputError, match=re.escape(f"but got {path} with no 'norm.bias': copy or download it again")):
        load_published(path)
    torch.save({"model": SLAK}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=re.escape(f"{path}, which is truncated or damaged")):
        load_published(path)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_intact_ones_are_taken(architecture: Architecture) -> None:
    assert read_published(architecture.published()).variant is None
    assert read_published(architecture.model().state_dict()).variant is None
