"""An estimate of what tiles cost, from multiplications, bytes and idle multiprocessors; nothing of it was measured.

The unit is one multiply-accumulate of 16-bit tensor cores at full rate. The rates are those of an H200: 395 T
multiply-accumulates and 4.3 TB of memory traffic a second.
"""

from __future__ import annotations

import math

import torch

from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.geometry import band
from widefield.ops.depthwise_conv.triton.tiles import TileConfig, fp32_mode

MACS_PER_BYTE = 92
MULTIPROCESSORS = 132
FP32_RATE = {"tf32x3": 6, "tf32": 2, "bf16x3": 3}
"""Time of a float32 product in units of a 16-bit one."""


def cost(problem: Problem, config: TileConfig) -> tuple[float, float]:
    """Return how long `config` is expected to take, and, to decide between equals, its multiplications.

    Args:
        problem: A forward problem (`geometry.as_forward`).
        config: Tiles of any kernel but ``hankel`` and ``roll``.
    """
    products, programs = _products(problem, config)
    products *= _penalty(problem, config)
    if problem.dtype == torch.float32:
        products *= FP32_RATE[fp32_mode()]
    planes, itemsize = problem.batch * problem.channels, problem.dtype.itemsize
    pixels = problem.height * problem.width + math.prod(problem.output_size)
    traffic = planes * pixels * itemsize * MACS_PER_BYTE
    idle = max(1.0, MULTIPROCESSORS / programs)
    time = max(products, traffic) * idle
    if problem.layout == "channels_last" and config.kernel != "channels_last":
        # One copy of the input before, one of the output after.
        time += 2 * traffic
    elif config.is_padded:
        time += 2 * planes * problem.height * problem.width * itemsize * MACS_PER_BYTE
    return time, products * idle


def _products(problem: Problem, config: TileConfig) -> tuple[float, int]:
    (height, width), (kernel_h, kernel_w) = problem.output_size, problem.kernel_size
    tile = config.block_m * config.block_n * config.block_k
    if config.kernel == "planes":
        chunks = -(-problem.height * problem.width // config.block_k)
        tiles = -(-problem.batch // config.block_m) * -(-height * width // config.block_n)
        groups = -(-problem.channels // config.channels)
        return tiles * groups * config.channels * chunks * tile, tiles * groups
    if config.kernel == "columns":
        chunks = band(problem, 0, config.block_n, config.block_k).chunks
        programs = -(-problem.batch * width // config.block_m) * -(-height // config.block_n) * problem.channels
        return programs * kernel_w * chunks * tile, programs
    chunks = band(problem, 1, config.block_n, config.block_k).chunks
    column_tiles = -(-width // config.block_n)
    if config.rows:
        images = -(-problem.batch // (config.block_m // config.rows))
        programs = images * -(-height // config.rows) * column_tiles * problem.channels
        lines = images * column_tiles * problem.channels * _lines(problem, config.rows)
        return lines * chunks * tile, programs
    groups = -(-problem.channels // config.channels)
    programs = -(-problem.batch * height // config.block_m) * column_tiles * groups
    return programs * config.channels * kernel_h * chunks * tile, programs


def _lines(problem: Problem, rows: int) -> int:
    """Rows of taps that meet the image, summed over the tiles of `rows` output rows."""
    height, gap, pad = problem.output_size[0], problem.dilation[0], problem.padding[0]
    total = 0
    for top in range(0, height, rows):
        first = -(-max(pad - top - rows + 1, 0) // gap)
        last = min((problem.height - 1 + pad - top) // gap + 1, problem.kernel_size[0])
        total += max(0, last - first)
    return total


def _penalty(problem: Problem, config: TileConfig) -> float:
    # Every step waits once for its loads: short ones wait more often.
    step_bytes = config.block_k * problem.dtype.itemsize
    factor = {32: 1.4, 64: 1.15}.get(step_bytes, 1.0)
    if config.kernel == "channels_last":
        # Batched dots run on mma.sync, which has neither the rate of wgmma nor its troubles with narrow products.
        return 2.5 * factor
    # Both operands of a narrow product are read from shared memory, which then sets the pace.
    factor *= {16: 2.5, 32: 1.5}.get(config.block_n, 1.0)
    if config.block_m < 64:
        factor *= 2
    if config.kernel == "columns":
        return 2 * factor
    if config.kernel == "planes":
        return 1.5 * factor
    if config.rows:
        factor *= 1.1
    width = -(-problem.width // 8) * 8 if config.is_padded else problem.width
    return factor * {8: 1.0, 4: 1.1, 2: 1.4, 1: 2.5}[math.gcd(width, 8)]
