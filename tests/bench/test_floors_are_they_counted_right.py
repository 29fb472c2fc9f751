from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench.bench_support import problem

from widefield.bench.floors import Ceilings, floor_s, least_bytes, useful_flops
from widefield.bench.operands import Operands
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.reference import ReferenceBackend


@pytest.mark.parametrize(
    "changes", [{}, {"stride": (2, 2)}, {"dilation": (2, 1)}, {"kernel_size": (15, 3), "padding": (7, 1)}]
)
def test_useful_operations_are_the_taps_that_meet_a_pixel(changes: dict) -> None:
    at = replace(problem(batch=1, channels=1), **changes)
    ones = Operands(x=torch.ones(1, 1, 8, 8), weight=torch.ones(1, 1, *at.kernel_size), grad=torch.ones(1))
    taps = ones.run(ReferenceBackend(), "forward", at).sum()
    assert useful_flops(at) == 2 * int(taps)
    assert useful_flops(replace(at, batch=3, channels=5)) == 15 * useful_flops(at)


def test_figures_of_the_first_stage_of_replknet_are_the_known_ones() -> None:
    at = Problem(
        batch=64, channels=128, height=56, width=56, kernel_size=(31, 31), padding=(15, 15), dtype=torch.bfloat16
    )
    assert useful_flops(at) / 1e9 == pytest.approx(36.7, abs=0.1)
    assert least_bytes(at) / 1e6 == pytest.approx(103.0, abs=0.1)
    ceilings = Ceilings(copy_bytes_per_s=4.3e12, matmul_flops={"bfloat16": 790e12, "slow": 67e12})
    assert floor_s(at, ceilings, "bfloat16") == pytest.approx(useful_flops(at) / 790e12)
    assert floor_s(at, ceilings, "slow") * 1e6 == pytest.approx(547, abs=2)
