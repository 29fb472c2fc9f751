"""Which tiles a problem runs with: those measured for its bucket, else the cheapest sensible ones by estimate."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton import hankel, roll, table
from widefield.ops.depthwise_conv.triton.cost import cost
from widefield.ops.depthwise_conv.triton.geometry import as_forward
from widefield.ops.depthwise_conv.triton.table import write_table as write_table
from widefield.ops.depthwise_conv.triton.tiles import CompileCase as CompileCase
from widefield.ops.depthwise_conv.triton.tiles import Fp32Mode, fp32_mode
from widefield.ops.depthwise_conv.triton.tiles import TileConfig as TileConfig
from widefield.ops.depthwise_conv.triton.tiles import use_fp32_mode as use_fp32_mode

Capability = tuple[int, int]

DENSE_PLANE = 256
"""Pixels of the largest map whose dense matrix is a candidate."""


def choose_tiles(problem: Problem, pass_: Pass, capability: Capability) -> TileConfig:
    """Return the tiles to run with: measured ones if there are any, else `default`."""
    return _chosen(problem, pass_, capability, fp32_mode())


@lru_cache(maxsize=4096)
def _chosen(problem: Problem, pass_: Pass, capability: Capability, mode: Fp32Mode) -> TileConfig:
    # The estimate depends on the mode, which is there for the cache.
    measured = table.measured(problem, pass_, capability)
    is_usable = measured is not None and not (measured.kernel == "roll" and roll.refusals(problem, pass_, capability))
    return measured if is_usable and measured is not None else default(problem, pass_, capability)


def default(problem: Problem, pass_: Pass, capability: Capability) -> TileConfig:
    """Return the candidate that is cheapest by the estimate of `cost`.

    Args:
        problem: The shape.
        pass_: The map.
        capability: Compute capability of the GPU, (9, 0) for an H200.
    """
    if pass_ == "grad_weight":
        return hankel.default(problem)
    form = as_forward(problem, pass_)
    return min(candidates(problem, pass_, capability), key=lambda config: cost(form, config))


def candidates(problem: Problem, pass_: Pass, capability: Capability) -> list[TileConfig]:
    """Return all tiles that are sensible for one map of a problem and fit the GPU's shared memory."""
    if pass_ == "grad_weight":
        return hankel.candidates(problem)
    form = as_forward(problem, pass_)
    found = [*_rows(form), *_columns(form), *_planes(form), *_channels_last(form)]
    limit = shared_memory_bytes(capability)
    return [config for config in found if _shared_bytes(config, form.dtype) <= limit]


def compile_cases(capability: Capability = (9, 0)) -> list[CompileCase]:
    """Return the ahead-of-time compiles of both maps at the layers of `cases.LAYERS`."""
    # The kernels' modules import Triton.
    from widefield.ops.depthwise_conv.triton import cases

    return cases.compile_cases(capability)


def shared_memory_bytes(capability: Capability) -> int:
    """Return how much shared memory one program may take."""
    if capability in ((8, 0), (8, 7)):
        return 163 * 1024
    return 227 * 1024 if capability[0] in (9, 10) else 99 * 1024


def _shared_bytes(config: TileConfig, dtype: torch.dtype) -> int:
    tiles = config.block_k * (config.block_m + config.block_n) * config.channels
    if config.kernel == "planes":
        tiles = config.block_k * (config.block_m + config.block_n)
    return tiles * dtype.itemsize * config.num_stages


def _rows(form: Problem) -> list[TileConfig]:
    is_wide_type = form.dtype == torch.float32
    found: list[TileConfig] = []
    height, width = form.output_size
    for block_n in _powers(16, 64, width):
        for block_k in _powers(16, 32 if is_wide_type else 64, form.width):
            for block_m, num_warps, num_stages in _row_shapes(is_wide_type):
                for rows in (0, 4, 8):
                    if rows and (form.batch * rows < block_m or height < 2 * rows):
                        continue
                    config = TileConfig(
                        kernel="rows",
                        block_m=block_m,
                        block_n=block_n,
                        block_k=block_k,
                        rows=rows,
                        num_warps=num_warps,
                        num_stages=num_stages,
                    )
                    found.append(config)
                    if form.width % 8 and form.width > 16:
                        found.append(replace(config, is_padded=True))
    return found


def _row_shapes(is_wide_type: bool) -> tuple[tuple[int, int, int], ...]:
    if is_wide_type:
        return (128, 8, 2), (64, 4, 2)
    return (256, 8, 3), (128, 4, 3), (64, 4, 3)


def _columns(form: Problem) -> list[TileConfig]:
    kernel_h, kernel_w = form.kernel_size
    if kernel_h <= kernel_w:
        return []
    is_wide_type = form.dtype == torch.float32
    return [
        TileConfig(
            kernel="columns",
            block_m=block_m,
            block_n=block_n,
            block_k=block_k,
            num_warps=num_warps,
            num_stages=2,
        )
        for block_n in _powers(16, 64, form.output_size[0])
        for block_k in _powers(16, 32 if is_wide_type else 64, form.height)
        for block_m, num_warps in ((128, 8), (64, 4))
    ]


def _planes(form: Problem) -> list[TileConfig]:
    pixels, outputs = form.height * form.width, form.output_size[0] * form.output_size[1]
    if max(pixels, outputs) > DENSE_PLANE:
        return []
    is_wide_type = form.dtype == torch.float32
    return [
        TileConfig(
            kernel="planes",
            block_m=block_m,
            block_n=block_n,
            block_k=32 if is_wide_type else 64,
            num_warps=8 if is_wide_type and block_m == 64 else 4,
            num_stages=2,
        )
        for block_m in (64, 16)
        for block_n in (64, 32)
    ]


def _channels_last(form: Problem) -> list[TileConfig]:
    if form.layout != "channels_last" or form.channels % 8:
        return []
    is_wide_type = form.dtype == torch.float32
    shapes = ((16, 64, 4), (16, 32, 4), (16, 16, 4)) if is_wide_type else ((16, 64, 8), (32, 32, 8), (32, 16, 16))
    return [
        TileConfig(
            kernel="channels_last",
            block_m=block_m,
            block_n=block_n,
            block_k=block_k,
            channels=channels,
            num_warps=8,
            num_stages=2,
        )
        for block_m, block_n, channels in shapes
        if block_n <= max(16, 2 * form.output_size[1])
        for block_k in _powers(16, 32 if is_wide_type else 64, form.width)
        if block_m * block_k * channels <= 8192
    ]


def _powers(least: int, most: int, size: int) -> list[int]:
    """Powers of 2 from `least` up to the first that holds `size`, or to `most`."""
    found = [least]
    while found[-1] < size and found[-1] < most:
        found.append(found[-1] * 2)
    return found
