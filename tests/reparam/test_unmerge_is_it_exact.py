from __future__ import annotations

import copy
import re

import pytest
import timm
import torch
from support.random_statistics import randomise
from torch import Tensor, nn

import widefield.models  # noqa: F401 - registers the models
from widefield._core.errors import InputError
from widefield.reparam import fold
from widefield.reparam.unmerge import UnmergeInfo, digest, unmerge, unmerge_info

State = dict[str, Tensor]


def states(name: str, dtype: torch.dtype) -> tuple[State, State]:
    """Return state dicts of one network before and after it is merged."""
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, num_classes=10)).to(dtype)
    branched = copy.deepcopy(model.state_dict())
    fold(model)
    return branched, model.state_dict()


def is_same(first: State, second: State) -> bool:
    return list(first) == list(second) and all(
        first[name].dtype == second[name].dtype
        and torch.equal(first[name].reshape(-1).view(torch.uint8), second[name].reshape(-1).view(torch.uint8))
        for name in first
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["replknet_nano", "repvgg_a0", "resnet18"])
def test_the_branched_form_comes_back_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    branched, merged = states(name, dtype)
    info = unmerge_info(branched, merged)
    # From copies in another order, as a file would give them.
    others = {key: merged[key].clone() for key in sorted(merged, reverse=True)}
    assert is_same(unmerge(others, info), branched)
    again = UnmergeInfo.from_file(info.tensors, info.header(), "a file")
    assert is_same(unmerge(others, again), branched)


def test_only_what_the_merged_form_does_not_hold_is_kept() -> None:
    branched, merged = states("replknet_nano", torch.float32)
    info = unmerge_info(branched, merged)
    left_out = set(branched) - set(info.tensors)
    assert {"head.fc.weight", "head.fc.bias", "norm.weight", "norm.running_var"} <= left_out
    assert {"stem.0.conv.weight", "stages.0.blocks.0.large_kernel.large.conv.weight"} <= set(info.tensors)


def test_bits_count_and_not_values() -> None:
    branched = {
        "zero": torch.tensor([0.0, 1.0]),
        "nan": torch.tensor(torch.nan),
        "count": torch.tensor(3),
        "type": torch.ones(2),
        "shape": torch.ones(4),
        "empty": torch.ones(0, 3),
    }
    merged = {
        **branched,
        "zero": torch.tensor([-0.0, 1.0]),
        "type": torch.ones(2, dtype=torch.float64),
        "shape": torch.ones(2, 2),
        "further": torch.ones(1),
    }
    info = unmerge_info(branched, merged)
    assert list(info.tensors) == ["zero", "type", "shape"]
    assert is_same(unmerge(merged, info), branched)


def test_merged_weights_that_have_changed_are_refused() -> None:
    branched, merged = states("replknet_nano", torch.float32)
    info = unmerge_info(branched, merged)
    text = (
        "Expected the merged weights as they came from the merge, but got others (trained further, converted, or of "
        "another merge): continue with the merged form, since its branches cannot be told apart any more."
    )
    name = "head.fc.weight"
    nudged = merged[name].clone()
    nudged.view(-1)[0] = torch.nextafter(nudged.view(-1)[0], torch.tensor(torch.inf))
    others = (
        {**merged, name: nudged},
        {**merged, name: merged[name].half()},
        {**merged, name: merged[name].T},
        {key: value for key, value in merged.items() if key != name},
        {},
    )
    for changed in others:
        with pytest.raises(InputError, match=re.escape(text)):
            unmerge(changed, info)


def test_a_file_of_another_kind_is_refused() -> None:
    text = (
        "Expected a file that keeps what a merge leaves out, but got model.safetensors, which is of another kind: "
        "name the merged checkpoint whose info file lies beside it."
    )
    with pytest.raises(InputError, match=re.escape(text)):
        UnmergeInfo.from_file({}, {"widefield": "{}"}, "model.safetensors")


def test_the_digest_depends_on_the_content_alone() -> None:
    layer = nn.Conv2d(3, 4, 3)
    state = dict(layer.state_dict())
    first = digest(state)
    assert digest(dict(reversed(list(state.items())))) == first
    assert digest({name: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
                   for name, value in state.items()}) == first  # fmt: skip
    assert digest({"a": state["weight"], "bias": state["bias"]}) != first
    assert digest({**state, "weight": state["weight"].reshape(4, 3, 9, 1)}) != first
