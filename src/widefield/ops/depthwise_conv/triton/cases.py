"""The layers whose kernels are compiled ahead of time, for the record of what they take of a GPU."""

from __future__ import annotations

from importlib import import_module

import torch

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.problem import Layout, Problem
from widefield.ops.depthwise_conv.triton import configs
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, TileConfig

LAYERS: tuple[tuple[str, int, int, tuple[int, int]], ...] = (
    ("RepLKNet-31B stage 1", 128, 56, (31, 31)),
    ("RepLKNet-31B stage 2", 256, 28, (29, 29)),
    ("RepLKNet-31B stage 3", 512, 14, (27, 27)),
    ("RepLKNet-31B stage 4", 1024, 7, (13, 13)),
    ("SLaK-T stage 1, tall", 124, 56, (51, 5)),
    ("SLaK-T stage 1, wide", 124, 56, (5, 51)),
    ("PeLK-B-101 stage 1", 62, 56, (101, 101)),
    ("UniRepLKNet-S stage 2", 192, 28, (13, 13)),
    ("ConvNeXt-B stage 1", 128, 56, (7, 7)),
    ("RepLKNet-31B stage 1 at 384", 128, 96, (31, 31)),
)
"""Name, channels, side of the map, kernel."""


def layer(name: str, *, batch: int = 64, dtype: torch.dtype = torch.bfloat16, layout: Layout = "contiguous") -> Problem:
    """Return the problem of one of `LAYERS`, without taps that meet no pixel."""
    _, channels, side, kernel = next(entry for entry in LAYERS if entry[0] == name)
    problem = Problem(
        batch=batch,
        channels=channels,
        height=side,
        width=side,
        kernel_size=kernel,
        padding=(kernel[0] // 2, kernel[1] // 2),
        dtype=dtype,
        device_type="cuda",
        layout=layout,
    )
    return clip(problem)[0]


def compile_case(problem: Problem, pass_: Pass, config: TileConfig) -> CompileCase:
    """Return the compile of one map with one choice of tiles; not for ``grad_weight`` or the roll kernel."""
    module = import_module(f"widefield.ops.depthwise_conv.triton.{config.kernel}")
    return module.compile_case(problem, pass_, config, problem.dtype)


def compile_cases(capability: tuple[int, int] = (9, 0), *, is_every_candidate: bool = False) -> list[CompileCase]:
    """Return the compiles of both maps of every layer, in bfloat16 and float32 and both layouts, without repetition.

    Args:
        capability: Of the GPU that the tiles are for.
        is_every_candidate: Whether to take all candidates rather than the default of each.
    """
    cases: dict[str, CompileCase] = {}
    passes: tuple[Pass, ...] = ("forward", "grad_input")
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    for name, *_ in LAYERS:
        for dtype in (torch.bfloat16, torch.float32):
            for layout in layouts:
                problem = layer(name, dtype=dtype, layout=layout)
                for pass_ in passes:
                    tiles = (
                        configs.candidates(problem, pass_, capability)
                        if is_every_candidate
                        else [configs.default(problem, pass_, capability)]
                    )
                    for config in tiles:
                        case = compile_case(problem, pass_, config)
                        cases.setdefault(case.name, case)
    return list(cases.values())
