from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from widefield._core.errors import InputError
from widefield.tasks.classification import ModelConfig
from widefield.tasks.classification.card import make_classifier


def test_options_reach_the_model() -> None:
    config = ModelConfig(name="mobilenetv2_lk", options=("small_kernel_size=5", "shortcut=false", "width_mult=0.5"))
    assert config.arguments() == {
        "drop_rate": 0.0,
        "small_kernel_size": 5,
        "shortcut": False,
        "width_mult": 0.5,
    }
    with torch.device("meta"):
        model = make_classifier(config, 10)
    assert not any(getattr(module, "shortcut", False) for module in model.modules())
    parallel = [value for name, value in model.named_parameters() if name.endswith(".small.conv.weight")]
    assert {tuple(value.shape[2:]) for value in parallel} == {(5, 5)}


@pytest.mark.parametrize(
    ("name", "typed", "sizes"),
    [
        (
            "unireplknet_s",
            "kernel_sizes=[3,13,13-3-3x9,13]",
            [[3] * 3, [13] * 3, [13, 3, 3] * 9, [13] * 3],
        ),
        (
            "unireplknet_n",
            "kernel_sizes=[[3, 0], 13-9 x 1, [13, 3, 0, 13, 3, 3, 17, 0], 11]",
            [[3, 0], [13, 9], [13, 3, 0, 13, 3, 3, 17, 0], [11, 11]],
        ),
        ("unireplknet_a", "kernel_sizes=[[3,3],[31,31],7-0-0x2,[5,5]]", [[3] * 2, [31] * 2, [7, 0, 0] * 2, [5] * 2]),
    ],
)
def test_each_block_has_the_kernel_that_was_typed(name: str, typed: str, sizes: list[list[int]]) -> None:
    with torch.device("meta"):
        model: Any = make_classifier(ModelConfig(name=name, options=(typed,)), 10)
    blocks = [list(stage.blocks) for stage in model.stages]
    assert [[_size(block.large_kernel) for block in stage] for stage in blocks] == sizes
    norms = [type(block.norm) is nn.Identity for stage in blocks for block in stage]
    assert norms == [size == 0 for stage in sizes for size in stage]


def _size(kernel: Any) -> int:
    size = getattr(kernel, "kernel_size", 0)
    return size[0] if isinstance(size, tuple) else size


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            "kernel_sizes=[3,13,13-3-3,13]",
            "sizes of a stage as 13, [13, 3, 3] or 13-3-3x9, but got '13-3-3' in",
        ),
        (
            "kernel_sizes=[3,13,13-3-3x99999,13]",
            "but got '13-3-3x99999' in 'kernel_sizes=[3,13,13-3-3x99999,13]'",
        ),
        ("kernel_sizes=[3,13,13-3x4,13]", "Expected one kernel size, or 6 of them, for a stage of 6 blocks, but got 8"),
        ("kernel_sizes=[3,13,[13.5],13]", "Expected a whole number for each kernel size of a stage, but got [13.5]"),
        ("kernel_sizes=[3,13,[[13]],13]", "a whole number for each kernel size of a stage, but got [[13]]: write for"),
        ("kernel_sizes=[3,13,[true],13]", "a whole number for each kernel size of a stage, but got [True]: write for"),
        ("kernel_sizes=[3,13,[12,12,12,12,12,12],13]", "Expected an odd kernel size, or 0 for a block without a"),
        (
            "kernel_sizes=[3,[13,13]]",
            "Expected one width, one depth and one kernel size for each stage, but got 4",
        ),
        (
            "kernel_sizes=[3,13,13,13]",
            "without fields of their own, but got 'kernel_sizes=[3,13,13,13]': use --mo",
        ),
    ],
)
def test_kernels_of_blocks_that_do_not_fit_are_refused(typed: str, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)), torch.device("meta"):
        make_classifier(ModelConfig(name="unireplknet_a", options=(typed,)), 10)


def test_kernels_are_given_once() -> None:
    config = ModelConfig(kernel_sizes=(3, 3, 3, 3), options=("kernel_sizes=[3,13,[13,3],13]",))
    text = r"Expected kernel sizes for stages or for blocks, but got both, with 'kernel_sizes=.*': leave out --model.k"
    with pytest.raises(InputError, match=text):
        config.arguments()


@pytest.mark.parametrize("name", ["slak_a", "pelk_a", "convnext_lk_t", "replknet_nano", "mobilenetv2_lk"])
def test_kernels_of_blocks_are_refused_where_a_stage_has_one(name: str) -> None:
    with pytest.raises(InputError, match="Expected "), torch.device("meta"):
        make_classifier(ModelConfig(name=name, options=("kernel_sizes=[3,3,[3,3],3]",)), 10)


def test_a_new_head_is_scaled() -> None:
    torch.manual_seed(0)
    whole = make_classifier(ModelConfig(name="unireplknet_a"), 10)
    torch.manual_seed(0)
    small = make_classifier(ModelConfig(name="unireplknet_a", head_init_scale=0.001), 10)
    torch.testing.assert_close(small.get_parameter("head.fc.weight"), 0.001 * whole.get_parameter("head.fc.weight"))


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("shortcut", "Expected model.options as NAME=VALUE, but got 'shortcut': write for instance --model.options"),
        ("drop_rate=1", "without fields of their own, but got 'drop_rate=1': use --model.drop-rate"),
        ("num_classes=3", "but got 'num_classes=3': leave it out: the number of classes comes from the data"),
        (
            "small_kernel_size=null",
            "Expected model.options with a value, but got 'small_kernel_size=null': leave it out",
        ),
        ("depths=[1, 2", r"Expected model.options with values as in YAML, but got 'depths=\[1, 2': write numbers"),
    ],
)
def test_options_that_are_none_are_refused(option: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ModelConfig(options=(option,)).arguments()


def test_a_head_cannot_start_at_nothing() -> None:
    with pytest.raises(InputError, match=r"Expected a positive model.head_init_scale, but got 0: use 1 to leave"):
        ModelConfig(head_init_scale=0.0)


def test_an_option_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match=r"settings that slak_a takes, but got .*shortcut=False.*model.options"):
        make_classifier(ModelConfig(name="slak_a", options=("shortcut=false",)), 3)
