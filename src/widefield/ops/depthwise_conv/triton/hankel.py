"""The weight's gradient on tensor cores, as the product of a Hankel and a Toeplitz matrix of pixels.

``dW[ky, kx] = sum over n, i, j of x[n, i, j + kx - p_w] g[n, i - ky + p_h, j]``: row kx of the first matrix is the
input shifted by kx columns, column ky of the second the gradient shifted by ky rows, and pixels are contracted. Nearly
all multiplications are useful, and the result is the kernel itself: nothing is left to reduce but the shares into which
the pixels were split, which are added up in a fixed order. There are no atomics; the same input gives the
same bits.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.launch import TYPE_NAMES, needs_upcast, on_device, precision
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, TileConfig

PROGRAMS = 4 * 132
"""Programs wanted at least: four for each multiprocessor of an H100 or H200."""
MOST_SPLITS = 64
MOST_SHARED_BYTES = 99 * 1024
"""Shared memory of a program on the least of GPUs that have the instructions used."""
_COPY_BLOCK = 1024


def refusals(problem: Problem) -> list[str]:
    """Return every reason, each a clause, why this kernel cannot compute the weight's gradient of `problem`."""
    rules = (
        (problem.stride == (1, 1), "its weight gradient needs stride 1"),
        (problem.dilation == (1, 1), "its weight gradient needs dilation 1"),
        (problem.dtype in TYPE_NAMES, f"its weight gradient has no kernel for {problem.dtype}"),
    )
    return [reason for holds, reason in rules if not holds]


@lru_cache(maxsize=4096)
def default(problem: Problem) -> TileConfig:
    """Return the tiles that the shape suggests: no measurement stands behind them yet."""
    kernel_h, kernel_w = problem.kernel_size
    block_m, block_n = _taps_per_tile(kernel_w), _taps_per_tile(kernel_h)
    width = problem.output_size[1]
    # Pairs of 2-byte pixels need two copies of the input, which pays only where it is read often.
    is_paired = problem.dtype != torch.float32 and kernel_w > 8
    block_k = 32 if problem.dtype == torch.float32 else 64
    config = TileConfig(
        kernel="hankel",
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        vector=2 if is_paired else 1,
        is_padded=width % 8 != 0 and kernel_h > 8,
        num_warps=4 if block_m * block_n >= 1024 else 2,
        num_stages=3,
    )
    return _with_splits(problem, config)


def candidates(problem: Problem) -> list[TileConfig]:
    """Return all tiles worth timing for `problem`, the default first."""
    first = default(problem)
    found = [first]
    vectors = (1,) if problem.dtype == torch.float32 else (1, 2, 4)
    for block_k in (32, 64, 128):
        for vector in vectors:
            for num_warps in (first.num_warps, 8 if first.num_warps == 4 else 4):
                for num_stages in (2, 3, 4):
                    tiles = replace(
                        first, block_k=block_k, vector=vector, num_warps=num_warps, num_stages=num_stages, splits=1
                    )
                    if _shared_bytes(tiles, problem) <= MOST_SHARED_BYTES:
                        found.append(_with_splits(problem, tiles))
    return list(dict.fromkeys(found))


def grad_weight(grad: Tensor, x: Tensor, problem: Problem, config: TileConfig | None = None) -> Tensor:
    """Compute the weight's gradient.

    Args:
        grad: The output's gradient (N, C, P, Q); copied if it is not contiguous.
        x: The input (N, C, H, W), of the same dtype; copied if it is not contiguous.
        problem: Their shape, one without `refusals`.
        config: Tiles; `default` if None.

    Returns:
        (C, 1, K_h, K_w) in float32.
    """
    tiles = config or default(problem)
    grad, x = grad.contiguous(), x.contiguous()
    kernel_h, kernel_w = problem.kernel_size
    steps = _steps(problem, tiles)
    steps_per_split = -(-steps // tiles.splits)
    splits = -(-steps // steps_per_split)
    partial = torch.empty((splits, problem.channels, kernel_h, kernel_w), dtype=torch.float32, device=x.device)
    tap_tiles = -(-kernel_w // tiles.block_m) * -(-kernel_h // tiles.block_n)
    with on_device(x):
        if tiles.vector > 1:
            x = _shifted(x, tiles.vector, _pitch(problem, tiles))
        if tiles.is_padded:
            grad = _shifted(grad, 1, _out_pitch(problem, tiles))
        elif grad.data_ptr() % 16:
            # Loads of 16 bytes are promised to the compiler.
            grad = grad.clone()
        _kernels().hankel[(splits * problem.channels, tap_tiles)](
            x,
            grad,
            partial,
            problem.batch,
            problem.channels,
            splits,
            steps_per_split,
            **constants(problem, tiles),
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
            enable_fp_fusion=True,
        )
    return (partial.sum(0) if splits > 1 else partial[0]).unsqueeze(1)


def compile_case(problem: Problem, config: TileConfig) -> CompileCase:
    """Return what an ahead-of-time compile of the kernel for `problem` needs; not in the interpreter's process."""
    element, type_ = TYPE_NAMES[problem.dtype], f"*{TYPE_NAMES[problem.dtype]}"
    shape = f"{problem.height}x{problem.width} k{problem.kernel_size[0]}x{problem.kernel_size[1]}"
    tiles = f"{config.block_m}x{config.block_n}x{config.block_k} v{config.vector}"
    numbers = ("batch", "channels", "splits", "steps_per_split")
    return CompileCase(
        name=f"hankel grad_weight {shape} {element} {tiles} w{config.num_warps} s{config.num_stages}",
        kernel=_kernels().hankel,
        signature={"x_ptr": type_, "grad_ptr": type_, "partial_ptr": "*fp32"} | dict.fromkeys(numbers, "i32"),
        constexprs=constants(problem, config),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _kernels() -> Any:
    # Triton is imported with it, and gives its functions types that no call fits.
    return import_module("widefield.ops.depthwise_conv.triton.hankel_kernel")


def _taps_per_tile(kernel: int) -> int:
    return 16 if kernel <= 16 else 32 if kernel <= 32 else 64


def _with_splits(problem: Problem, config: TileConfig) -> TileConfig:
    kernel_h, kernel_w = problem.kernel_size
    programs = problem.channels * -(-kernel_w // config.block_m) * -(-kernel_h // config.block_n)
    return replace(config, splits=max(1, min(-(-PROGRAMS // programs), MOST_SPLITS, _steps(problem, config))))


def constants(problem: Problem, config: TileConfig) -> dict[str, object]:
    """Return the kernel's constant arguments."""
    arithmetic = {"PRECISION": precision(problem.dtype), "UPCAST": needs_upcast(problem.dtype)}
    return _tile_constants(problem, config) | arithmetic


@lru_cache(maxsize=4096)
def _tile_constants(problem: Problem, config: TileConfig) -> dict[str, object]:
    (kernel_h, kernel_w), out_pitch = problem.kernel_size, _out_pitch(problem, config)
    images, rows, columns = pixel_block(problem.height, out_pitch, config.block_k)
    elements = 16 // problem.dtype.itemsize
    return {
        "HEIGHT": problem.height,
        "WIDTH": problem.width,
        "PITCH": _pitch(problem, config),
        "OUT_HEIGHT": problem.output_size[0],
        "OUT_PITCH": out_pitch,
        "KERNEL_H": kernel_h,
        "KERNEL_W": kernel_w,
        "PAD_H": problem.padding[0],
        "PAD_W": problem.padding[1],
        "BLOCK_KX": config.block_m,
        "BLOCK_KY": config.block_n,
        "IMAGES": images,
        "ROWS": rows,
        "COLUMNS": columns,
        "COPIES": config.vector,
        "ALIGNED": min(elements, columns, out_pitch & -out_pitch),
    }


def pixel_block(height: int, width: int, pixels: int) -> tuple[int, int, int]:
    """Cut a power of two of pixels into (images, rows, columns), each a power of two, for an H x W map.

    The columns are those that overhang the row least, 16 at least where the row has as many.
    """
    powers = [1 << k for k in range(pixels.bit_length())]
    least = min(16, pixels, _power_above(width))
    columns = min((c for c in powers if least <= c <= _power_above(width)), key=lambda c: (-(-width // c) * c, -c))
    rows = min(pixels // columns, _power_above(height))
    return pixels // (columns * rows), rows, columns


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _shared_bytes(config: TileConfig, problem: Problem) -> int:
    return config.block_k * (config.block_m + config.block_n) * problem.dtype.itemsize * config.num_stages


def _steps(problem: Problem, config: TileConfig) -> int:
    pitch = _out_pitch(problem, config)
    images, rows, columns = pixel_block(problem.height, pitch, config.block_k)
    return -(-problem.batch // images) * -(-problem.height // rows) * -(-pitch // columns)


def _pitch(problem: Problem, config: TileConfig) -> int:
    return -(-(problem.width + config.vector - 1) // config.vector) * config.vector


def _out_pitch(problem: Problem, config: TileConfig) -> int:
    width = problem.output_size[1]
    return -(-width // 8) * 8 if config.is_padded else width


def _shifted(x: Tensor, copies: int, pitch: int) -> Tensor:
    width = x.shape[-1]
    shifted = x.new_empty((copies, *x.shape[:-1], pitch))
    size = shifted[0].numel()
    _kernels().shift_copies[(-(-size // _COPY_BLOCK), copies)](
        x, shifted, size, WIDTH=width, PITCH=pitch, BLOCK=_COPY_BLOCK, enable_fp_fusion=True
    )
    return shifted
