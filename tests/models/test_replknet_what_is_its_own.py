from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from support.families import images
from support.random_statistics import randomise
from timm.models._manipulate import group_parameters
from torch import nn

from widefield import create_model
from widefield.checkpoints.replknet import to_published


def make(name: str = "replknet_nano", **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def test_a_stage_with_a_kernel_no_larger_than_the_small_one_has_no_small_one() -> None:
    model = make(kernel_sizes=(5, 7, 3, 13), small_kernel_size=5)
    smalls = [stage.blocks[0].large_kernel.small is not None for stage in model.stages]
    assert smalls == [False, True, False, True]


def test_an_argument_that_is_none_is_none() -> None:
    model = create_model("replknet_nano", small_kernel_size=None, num_classes=3)
    assert not any(name.endswith(".small") for name, _ in model.named_modules())
    assert model.get_submodule("head.fc").out_features == 3
    tagged = create_model("replknet_31b.in22k", small_kernel_size=None, device="meta")
    assert tagged.pretrained_cfg["tag"] == "in22k"
    with pytest.raises(TypeError, match="unexpected keyword argument 'small_kernel'"):
        create_model("replknet_nano", small_kernel=None)


def test_drop_path_grows_from_the_first_pair_to_the_last() -> None:
    model = make(drop_path_rate=0.3, drop_rate=0.1)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.3 * pair / 5 for pair in range(6) for _ in range(2)])
    assert model.head.drop.p == pytest.approx(0.1) if isinstance(model.head.drop, nn.Dropout) else model.head.drop_rate


def published_layer(key: str) -> int:
    """Layer of a published key: the stem, the first two stages with the transitions after them, pairs of the third."""
    parts = key.split(".")
    if parts[0] == "stem":
        return 0
    if parts[0] == "transitions":
        return {0: 1, 1: 2, 2: 11}[int(parts[1])]
    if parts[0] == "stages":
        return {0: 1, 1: 2, 2: 3 + int(parts[3]) // 4, 3: 12}[int(parts[1])]
    return 13


def test_layers_for_learning_rate_decay_are_the_published_ones() -> None:
    model = make("replknet_31b", device="meta")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    names = dict.fromkeys(dict(model.named_parameters()))
    theirs = list(to_published(names))
    expected = {ours: published_layer(key) for ours, key in zip(names, theirs, strict=True)}
    assert layers == expected
    assert set(layers.values()) == set(range(14))
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(coarse.values()) == set(range(6))


@pytest.mark.parametrize(("name", "count"), [("replknet_nano", 7), ("replknet_small", 12)])
def test_shallower_variants_have_a_layer_for_every_two_pairs_of_the_third_stage(name: str, count: int) -> None:
    model = make(name, device="meta")
    assert set(group_parameters(model, model.group_matcher(), reverse=True).values()) == set(range(count))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_published_weights_come_from_a_file_for_any_number_of_classes(suffix: str, tmp_path: Any) -> None:
    from safetensors.torch import save_file

    source = randomise(make())
    path = tmp_path / f"published.{suffix}"
    weights = to_published(source.state_dict())
    (save_file if suffix == "safetensors" else torch.save)(weights, path)
    overlay = {"file": str(path)}
    same = make(pretrained=True, pretrained_cfg_overlay=overlay).eval()
    torch.testing.assert_close(same(images()), source(images()), rtol=0, atol=0)
    other = make(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=7, in_chans=1).eval()
    assert other.get_classifier().out_features == 7
    kept, given = other.state_dict(), source.state_dict()
    lost = [k for k in given if k not in ("head.fc.weight", "head.fc.bias", "stem.0.conv.weight")]
    assert all(torch.equal(kept[key], given[key]) for key in lost)
    torch.testing.assert_close(kept["stem.0.conv.weight"], given["stem.0.conv.weight"].sum(1, keepdim=True))


def test_our_own_weights_come_from_a_file_too(tmp_path: Any) -> None:
    source = randomise(make())
    torch.save({"state_dict": source.state_dict()}, tmp_path / "ours.pth")
    same = make(pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "ours.pth")}).eval()
    torch.testing.assert_close(same(images()), source(images()), rtol=0, atol=0)
