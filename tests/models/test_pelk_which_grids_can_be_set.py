"""PeLK's Tables 5 and 6 by what is typed after --model.options, and half grids in Python."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from widefield._core.errors import InputError
from widefield.models.pelk import PeLK
from widefield.tasks.classification import ModelConfig
from widefield.tasks.classification.card import make_classifier

# Table 5: half grid, as printed, and parameters beside a dense 33 x 33.
GRIDS = (
    ("[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "1.00"),
    ("[2,2,2,2,2,2,2,2,1]", "0.27"),
    ("[2,2,2,2,2,2,2,1,1,1]", "0.33"),
    ("[4,4,4,2,1,1,1]", "0.16"),
    ("[8,4,2,1,1,1]", "0.11"),
    ("[1,1,2,4,8,1]", "0.11"),
)


@pytest.mark.parametrize(("half", "ratio"), GRIDS)
def test_the_grids_of_table_5_are_options(half: str, ratio: str) -> None:
    options = ("position=none", f"grids={half}")
    with torch.device("meta"):
        model: Any = make_classifier(ModelConfig(name="pelk_a", kernel_sizes=(33,) * 4, options=options), 3)
    kernels = [block.large_kernel.conv for stage in model.stages for block in stage.blocks]
    assert len(kernels) == 12
    for conv in kernels:
        assert list(conv.grid.half) == list(map(int, half.strip("[]").split(",")))
        assert f"{conv.weight.numel() / (conv.channels * 33**2):.2f}" == ratio


@pytest.mark.parametrize(("radius", "cells"), [(0, 9), (1, 11), (2, 13), (3, 15)])
def test_the_centres_of_table_6_are_options(radius: int, cells: int) -> None:
    config = ModelConfig(name="pelk_a", kernel_sizes=(51,) * 4, options=(f"centre_radius={radius}",))
    with torch.device("meta"):
        model: Any = make_classifier(config, 3)
    assert {block.large_kernel.conv.weight.shape[2:] for stage in model.stages for block in stage.blocks} == {
        (cells, cells)
    }


def test_each_stage_may_have_a_grid_of_its_own() -> None:
    grids = [[2, 1, 1], None, (3, 1, 1), [1, 1, 1, 2, 1]]
    model: Any = PeLK((8, 8, 8, 8), (1, 1, 1, 1), (7, 9, 9, 11), grids=grids)
    sizes = [stage.blocks[0].large_kernel.conv.grid.sizes for stage in model.stages]
    assert sizes[0] == (2, 1, 1, 1, 2)
    assert sizes[2] == (3, 1, 1, 1, 3)
    assert sizes[3] == (1, 1, 1, 2, 1, 2, 1, 1, 1)


@pytest.mark.parametrize(
    ("grids", "text"),
    [
        (
            [7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 9],
            "Expected a half grid that spans 33 taps, the outermost cell first and the central one last, but got "
            "[7, 4, 2, 1, 1, 1, 1, 1, 2, 4, 9], which spans 57: give whole numbers whose double, the central one "
            "counted once, is the kernel size.",
        ),
        ([8, 4, 2, 1, 1], "but got [8, 4, 2, 1, 1], which spans 31: give whole numbers"),
        ([16, 0, 1], "but got [16, 0, 1]: give whole numbers"),
        ([[8, 4, 2, 1, 1, 1], [16, 1], [16, "x"], [16, 1]], "but got [16, 'x']: give whole numbers"),
        ([], "but got []: give whole numbers"),
        ([8, 4.0, 2, 1], "but got 8: give whole numbers"),
        (
            "8-4-2",
            "Expected half grids such as [8, 4, 2, 1, 1, 1], one for all stages or one for each, but got '8-4-2'",
        ),
    ],
)
def test_half_grids_that_do_not_fit_are_refused(grids: Any, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        PeLK((8, 8, 8, 8), (1, 1, 1, 1), (33, 33, 33, 33), grids=grids)
