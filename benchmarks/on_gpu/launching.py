"""Single Triton tile configurations run by hand, and what their compiled code takes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from widefield.bench.operands import Operands
from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton import configs, roll
from widefield.ops.depthwise_conv.triton.backend import TritonBackend, convolve
from widefield.ops.depthwise_conv.triton.cost import cost
from widefield.ops.depthwise_conv.triton.geometry import as_forward
from widefield.ops.depthwise_conv.triton.hankel import grad_weight
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

KERNEL_MODULES = ("rows", "columns", "planes", "channels_last", "hankel_kernel", "roll_kernel")
INTERPRETED_CAPABILITY = (9, 0)


def capability(problem: Problem) -> tuple[int, int]:
    """Return the compute capability of the GPU, or that which the interpreter stands for."""
    return torch.cuda.get_device_capability(0) if problem.device_type == "cuda" else INTERPRETED_CAPABILITY


def refusals(problem: Problem, pass_: Pass) -> list[str]:
    """Return why Triton cannot run a map."""
    return TritonBackend().refusals(problem, pass_)


def candidates(problem: Problem, pass_: Pass) -> list[TileConfig]:
    """Return every sensible configuration, the most promising by estimate first, the default among them."""
    found = configs.candidates(problem, pass_, capability(problem))
    if pass_ == "grad_weight":
        return found
    form = as_forward(problem, pass_)
    found = sorted(found, key=lambda config: cost(form, config))
    has_roll = not roll.refusals(problem, pass_, capability(problem))
    return [*(roll.candidates(problem) if has_roll else ()), *found]


def spread(found: Sequence[TileConfig], most: int) -> list[TileConfig]:
    """Return `most` of the configurations, the first and evenly many of the others, every kernel among them."""
    firsts = list({config.kernel: config for config in reversed(found)}.values())
    step = max(1, len(found) // most)
    return list(dict.fromkeys([*firsts, *found[::step]]))[: max(most, len(firsts))]


def run(problem: Problem, pass_: Pass, config: TileConfig, operands: Operands) -> Tensor:
    """Compute one map with one configuration."""
    if pass_ == "grad_weight":
        return grad_weight(operands.grad, operands.x, problem, config)
    image = operands.x if pass_ == "forward" else operands.grad
    if config.kernel == "roll":
        return roll.launch(image, operands.weight, None, problem, pass_, config)
    return convolve(image, operands.weight, None, problem, pass_, config)


def words(config: TileConfig) -> dict[str, Any]:
    """Return a configuration as plain values."""
    return asdict(config)


class Compiled:
    """Watches what Triton compiles, to tell registers and spills of a launch."""

    def __init__(self) -> None:
        self._seen = self._kernels()

    def fresh(self) -> dict[str, int] | None:
        """Return the most registers and spills of what was compiled since the last call; none if nothing was."""
        now = self._kernels()
        found = [kernel for key, kernel in now.items() if key not in self._seen]
        self._seen = now
        if not found:
            return None
        return {"registers": max(k.n_regs for k in found), "spills": max(k.n_spills for k in found)}

    @staticmethod
    def _kernels() -> dict[int, Any]:
        if not torch.cuda.is_available():
            return {}
        found: dict[int, Any] = {}
        for name in KERNEL_MODULES:
            try:
                module = importlib.import_module(f"widefield.ops.depthwise_conv.triton.{name}")
            except ImportError:
                continue
            for value in vars(module).values():
                for caches in getattr(value, "device_caches", {}).values():
                    found |= {id(kernel): kernel for kernel in caches[0].values() if hasattr(kernel, "n_spills")}
        return found
