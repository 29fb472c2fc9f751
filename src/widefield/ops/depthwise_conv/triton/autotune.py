"""Tiles chosen by timing them on the machine at hand: only where ``WIDEFIELD_AUTOTUNE=1`` asks for it.

Every candidate is run once and compared with PyTorch before it is timed, since compilers have been seen to get tiles
wrong; what is wrong or fails is dropped and logged. What is chosen is kept for the version of Triton and the GPU.
"""

# Triton has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from widefield._core.cache import cache_folder, slug
from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.aten import AtenBackend
from widefield.ops.depthwise_conv.problem import Problem, memory_format
from widefield.ops.depthwise_conv.triton import backend, configs, hankel, roll
from widefield.ops.depthwise_conv.triton.table import key, read_table, write_table
from widefield.ops.depthwise_conv.triton.tiles import TileConfig, fp32_mode

VARIABLE = "WIDEFIELD_AUTOTUNE"
FP32_TOLERANCES = {"tf32x3": 1e-5, "tf32": 2e-3, "bf16x3": 5e-5}
"""Largest error allowed in float32, over the largest sum of the absolute values of the terms of an output."""

Timer = Callable[[Callable[[], object]], float]
"""Runs what it is given, as often as it likes, and returns the milliseconds of one run."""

_logger = logging.getLogger(__name__)


def is_requested() -> bool:
    """Return whether the environment asks for timing."""
    return os.environ.get(VARIABLE) == "1"


def choose(problem: Problem, pass_: Pass, capability: tuple[int, int]) -> TileConfig | None:
    """Return the tiles timed to be best here for the problem's bucket, timing them now if nobody has.

    While a CUDA graph is captured nothing is timed: what is on file is returned.

    Args:
        problem: The shape.
        pass_: The map.
        capability: Of the GPU, (9, 0) for an H200.

    Returns:
        Tiles; None if they were not asked for (`is_requested`), or no candidate is right.
    """
    if not is_requested():
        return None
    path, name = cache_path(), entry_name(problem, pass_)
    entries = read_table(path)
    if name in entries or (problem.device_type == "cuda" and torch.cuda.is_current_stream_capturing()):
        return entries.get(name)
    tiles = configs.candidates(problem, pass_, capability)
    if not roll.refusals(problem, pass_, capability):
        tiles = [*tiles, *roll.candidates(problem)]
    return tune(problem, pass_, tiles, path)


def tune(
    problem: Problem, pass_: Pass, tiles: Sequence[TileConfig], path: Path, timer: Timer | None = None
) -> TileConfig | None:
    """Time tiles on random tensors, and keep the best.

    Args:
        problem: The shape.
        pass_: The map.
        tiles: The candidates.
        path: The JSON file in which the choice is kept; other entries stay.
        timer: How to time; Triton's ``do_bench`` if None.

    Returns:
        The fastest of the tiles whose result is right, or None if there is none.
    """
    first, second = _random_operands(problem, pass_)
    wide = torch.float64 if problem.dtype == torch.float32 else torch.float32
    expected = _aten(first.to(wide), second.to(wide), problem, pass_)
    scale = _aten(first.abs().to(wide), second.abs().to(wide), problem, pass_).max().item()
    eps = torch.finfo(problem.dtype).eps
    allowed = FP32_TOLERANCES[fp32_mode()] if problem.dtype == torch.float32 else 2 * eps

    def error(config: TileConfig) -> float:
        # The allocator hands this block on: what a kernel does not write is not the result of the one before.
        torch.full_like(expected, torch.nan, dtype=problem.dtype)
        difference = (_run(first, second, problem, pass_, config).to(wide) - expected).abs()
        return difference.nan_to_num(torch.inf).max().item() / max(scale, 1e-30)

    def time_ms(config: TileConfig) -> float:
        return (timer or bench_ms)(lambda: _run(first, second, problem, pass_, config))

    best = fastest(tiles, error, allowed, time_ms)
    if best is not None:
        write_table(path, {entry_name(problem, pass_): best})
    return best


def fastest(
    tiles: Sequence[TileConfig],
    error: Callable[[TileConfig], float],
    allowed: float,
    time_ms: Callable[[TileConfig], float],
) -> TileConfig | None:
    """Return the fastest of those tiles that run and whose error is allowed; the first of equals.

    Args:
        tiles: The candidates.
        error: Runs one and returns its error.
        allowed: The largest error.
        time_ms: Times one; called only for those that are right.
    """
    times: dict[TileConfig, float] = {}
    for config in tiles:
        try:
            found = error(config)
            if not found <= allowed:
                _logger.warning("dropped %s: its error is %.2g, above %.2g", config, found, allowed)
                continue
            times[config] = time_ms(config)
        # Compilers and drivers raise errors of many kinds; whatever it is, these tiles are of no use here.
        except Exception as failure:
            _logger.warning("dropped %s: %s: %s", config, type(failure).__name__, failure)
    return min(times, key=lambda config: times[config]) if times else None


def bench_ms(run: Callable[[], object]) -> float:
    """Return the median time of `run` on the GPU in milliseconds, with a cold cache."""
    from triton.testing import do_bench

    return float(cast("float", do_bench(run, return_mode="median")))


def cache_path() -> Path:
    """Return the file of choices for this version of Triton and this GPU, in the user's cache folder."""
    import triton

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "interpreter"
    return cache_folder() / f"triton-{triton.__version__}-{slug(gpu)}.json"


def entry_name(problem: Problem, pass_: Pass) -> str:
    """Return under which name the choice for a problem is kept: its bucket, and how float32 is multiplied."""
    name = key(problem, pass_)
    return f"{name}/{fp32_mode()}" if problem.dtype == torch.float32 else name


def _random_operands(problem: Problem, pass_: Pass) -> tuple[Tensor, Tensor]:
    """The image that is convolved and the kernel; for the weight's gradient the gradient and the input."""
    device = problem.device_type
    generator = torch.Generator(device).manual_seed(0)
    planes = (problem.batch, problem.channels)
    image = (*planes, problem.height, problem.width)
    grad = (*planes, *problem.output_size)
    shapes = {
        "forward": (image, (problem.channels, 1, *problem.kernel_size)),
        "grad_input": (grad, (problem.channels, 1, *problem.kernel_size)),
        "grad_weight": (grad, image),
    }[pass_]
    first, second = (torch.randn(shape, generator=generator, device=device).to(problem.dtype) for shape in shapes)
    form = memory_format(problem.layout)
    is_image = pass_ == "grad_weight"
    return first.contiguous(memory_format=form), second.contiguous(memory_format=form) if is_image else second


def _aten(first: Tensor, second: Tensor, problem: Problem, pass_: Pass) -> Tensor:
    aten = AtenBackend()
    if pass_ == "forward":
        return aten.forward(first, second, None, problem)
    if pass_ == "grad_input":
        return aten.grad_input(first, second, problem)
    return aten.grad_weight(first, second, problem)


def _run(first: Tensor, second: Tensor, problem: Problem, pass_: Pass, config: TileConfig) -> Tensor:
    if pass_ == "grad_weight":
        return hankel.grad_weight(first, second, problem, config)
    return backend.convolve(first, second, None, problem, pass_, config)
