"""Hardware may look at the address of a lane that is masked off, so every lane's must lie within its tensor.

The interpreter shows the addresses; on a GPU compute-sanitizer would be needed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.problems import make_case
from torch import Tensor

from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton import channels_last, columns, planes, rows
from widefield.ops.depthwise_conv.triton.expand import expand
from widefield.ops.depthwise_conv.triton.geometry import as_forward, band
from widefield.ops.depthwise_conv.triton.launch import is_interpreted
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

SMALL = TileConfig(kernel="rows", block_m=16, block_n=16, block_k=16)
KERNELS = (
    SMALL,
    replace(SMALL, rows=4),
    replace(SMALL, kernel="columns"),
    replace(SMALL, kernel="planes", block_n=32, block_k=32, channels=3),
    replace(SMALL, kernel="channels_last", channels=4),
)
MODULES = {"rows": rows, "columns": columns, "channels_last": channels_last}


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """First and last address of every masked load, all lanes counted."""
    from triton.runtime import interpreter

    seen: list[tuple[int, int]] = []
    load = interpreter.InterpreterBuilder.create_masked_load

    def watched(self, ptrs, mask, *rest):
        seen.append((int(np.min(ptrs.data)), int(np.max(ptrs.data))))
        return load(self, ptrs, mask, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", watched)
    return seen


def run(problem: Problem, pass_: str, config: TileConfig) -> list[Tensor]:
    """Launch one kernel and return the tensors that it reads."""
    is_flipped = pass_ == "grad_input"
    case, form = make_case(problem), as_forward(problem, "grad_input" if is_flipped else "forward")
    image = case.grad if is_flipped else case.x
    residual = torch.zeros(form.batch, form.channels, *form.output_size)
    if config.kernel == "planes":
        weight = case.weight
        planes.launch(image, weight, case.bias, form, config, is_flipped=is_flipped, residual=residual)
    else:
        axis = 0 if config.kernel == "columns" else 1
        shape = band(form, axis, config.block_n, config.block_k)
        weight = expand(case.weight, form, axis, shape, is_flipped=is_flipped)
        if config.kernel == "channels_last":
            image = image.contiguous(memory_format=torch.channels_last)
            residual = residual.contiguous(memory_format=torch.channels_last)
        MODULES[config.kernel].launch(image, weight, case.bias, form, config, residual=residual)
    assert case.bias is not None
    return [image, weight, residual, case.bias, case.weight]


if is_interpreted():

    @pytest.mark.parametrize("pass_", ["forward", "grad_input"])
    @pytest.mark.parametrize("padding", [(1, 2), (4, 9)])
    @pytest.mark.parametrize("config", KERNELS, ids=lambda c: f"{c.kernel}-{c.rows}")
    def test_every_lane_reads_within_the_tensors(
        config: TileConfig, padding: tuple[int, int], pass_: str, addresses: list[tuple[int, int]]
    ) -> None:
        problem = Problem(batch=2, channels=2, height=5, width=18, kernel_size=(3, 5), padding=padding)
        tensors = run(problem, pass_, config)
        ranges = [(t.data_ptr(), t.data_ptr() + (t.numel() - 1) * t.element_size()) for t in tensors]
        assert len(addresses) > 10
        for first, last in addresses:
            assert any(low <= first and last <= high for low, high in ranges)
