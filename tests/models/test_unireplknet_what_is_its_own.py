from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from support.random_statistics import randomise
from timm.models._manipulate import group_parameters

from widefield._core.errors import InputError
from widefield.checkpoints.unireplknet import to_published
from widefield.models.unireplknet import UniRepLKNet

SMALL = {"channels": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "kernel_sizes": (3, 13, (13, 3), 13)}


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    return UniRepLKNet(**{**SMALL, "num_classes": 3, **options})


@pytest.mark.parametrize("size", [(384, 128), (128, 384), (50, 70), (32, 32)])
@torch.no_grad()
def test_images_of_other_proportions_give_finite_outputs(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model: Any = randomise(timm.create_model("unireplknet_a", layer_scale=1.0))
    x = torch.randn(1, 3, *size)
    features, stages = model.forward_intermediates(x)
    rows, columns = (-(-pixels // 4) for pixels in size)
    for stage in stages:
        assert stage.shape[2:] == (rows, columns)
        assert torch.isfinite(stage).all()
        rows, columns = -(-rows // 2), -(-columns // 2)
    assert torch.isfinite(model.forward_head(features)).all()


def published_layer(key: str) -> int:
    """Layer of a published key: the stem, stages, the downsampling before the next one, triples of the third stage."""
    parts = key.split(".")
    if parts[0] == "downsample_layers":
        return {0: 0, 1: 2, 2: 3, 3: 12}[int(parts[1])]
    if parts[0] == "stages":
        return {0: 1, 1: 2, 2: 3 + int(parts[2]) // 3, 3: 12}[int(parts[1])]
    return 13


def test_layers_for_learning_rate_decay_are_the_published_ones() -> None:
    model: Any = timm.create_model("unireplknet_s", device="meta")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    names = dict.fromkeys(dict(model.named_parameters()))
    expected = {ours: published_layer(theirs) for ours, theirs in zip(names, to_published(names), strict=True)}
    assert layers == expected


def test_a_stage_takes_one_kernel_size_or_one_for_each_block() -> None:
    one, each = make(kernel_sizes=(3, 13, 7, 5)), make(kernel_sizes=((3,), [13], (7, 7), 5))
    assert list(one.state_dict()) == list(each.state_dict())
    assert [block.large_kernel.kernel_size for block in one.stages[2].blocks] == [7, 7]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"depths": (1, 1, 3, 1)},
            "Expected one kernel size, or 3 of them, for a stage of 3 blocks, but got 2: "
            "give one for each block of the stage.",
        ),
        (
            {"channels": (8, 8, 16)},
            "Expected one width, one depth and one kernel size for each stage, "
            "but got 3 widths, 4 depths and 4 kernel sizes: give as many of each.",
        ),
        (
            {"kernel_sizes": (4, 13, 13, 13)},
            "Expected an odd kernel size, or 0 for a block without a depthwise convolution, but got 4: use 5.",
        ),
        (
            {"kernel_sizes": (-1, 13, 13, 13)},
            "Expected an odd kernel size, or 0 for a block without a depthwise convolution, but got -1: use 1.",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        make(**options)


def test_first_weights_follow_the_paper() -> None:
    model = make(head_init_scale=0.5, layer_scale=1e-3)
    whole = make()
    block = model.stages[1].blocks[0]
    assert torch.equal(model.head.fc.weight, whole.head.fc.weight * 0.5)
    assert torch.equal(block.gamma, torch.full((8,), 1e-3))
    assert block.fc1.weight.abs().max() < 0.2
    assert not block.fc1.bias.any()
    assert not block.response_norm.gamma.any()
    assert make(layer_scale=None).stages[0].blocks[0].gamma is None
    assert make(ffn_ratio=3).stages[0].blocks[0].fc1.out_features == 24


def test_features_have_norms_of_their_own_where_asked_for() -> None:
    model = make(feature_norms=True).eval()
    maps = model.forward_intermediates(torch.randn(1, 3, 64, 64), intermediates_only=True)
    for features in maps:
        torch.testing.assert_close(features.mean(1), torch.zeros_like(features[:, 0]), rtol=0, atol=1e-5)
