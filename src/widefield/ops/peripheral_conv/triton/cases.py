"""The compiles that matter: PeLK's layers at 224 and 384 pixels, both kernels, in two types."""

from __future__ import annotations

import torch

from widefield.ops.depthwise_conv.triton.tiles import CompileCase
from widefield.ops.peripheral_conv.clip import clip
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_conv.triton import box_products, box_rows
from widefield.ops.peripheral_kernel.grid import SharingGrid

LAYERS = (
    (56, SharingGrid.exponential(51)),
    (28, SharingGrid.exponential(49)),
    (56, SharingGrid.exponential(101, 3)),
    (28, SharingGrid.exponential(69, 3)),
    (14, SharingGrid.exponential(67, 3)),
    (96, SharingGrid.exponential(101, 3)),
    (48, SharingGrid.exponential(69, 3)),
)
"""Side of the map and cells of both axes."""


def compile_cases() -> list[CompileCase]:
    """Return the compiles of both kernels at `LAYERS`, in bfloat16 and float32."""
    found: list[CompileCase] = []
    for side, grid in LAYERS:
        for dtype in (torch.bfloat16, torch.float32):
            problem, _ = clip(
                PeripheralProblem(batch=64, channels=64, height=side, width=side, rows=grid, columns=grid, dtype=dtype)
            )
            found += [box_rows.compile_case(problem, box_rows.tiles(problem)), box_products.compile_case(problem)]
    return found
