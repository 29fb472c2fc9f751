"""The correctness gate: what a candidate computes is compared with the definition in float64 before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.bench.operands import Operands
from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.reference import ReferenceBackend

MOST_MACS = 2**27
"""Multiplications in float64 above which only a part of the output is compared."""

MOST_TAPS = 64
"""Taps of a weight gradient that are compared when even one channel is too much."""

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Largest relative error (Euclidean norms) by dtype: a few times the rounding of the output's type."""

TORCH_FACTOR = 4.0
"""A candidate may also be this many times as far off as PyTorch's own result."""

WORST_LIMIT = 0.05
"""Nothing with a larger relative error passes, PyTorch included."""


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """The right result of one map, in full or in part."""

    expected: Tensor
    """Float64."""
    part: Callable[[Tensor], Tensor]
    """Takes the same part out of a candidate's result."""
    how: str
    """What is compared."""

    def error(self, actual: Tensor) -> float:
        """Return the relative error of a result, infinite if it is not finite."""
        part = self.part(actual).double()
        if part.shape != self.expected.shape or not bool(torch.isfinite(part).all()):
            return float("inf")
        scale = torch.linalg.vector_norm(self.expected).clamp_min(1e-300)
        return float(torch.linalg.vector_norm(part - self.expected) / scale)


def limit(dtype: torch.dtype, torch_error: float | None) -> float:
    """Return the largest error that passes.

    Args:
        dtype: Of the input.
        torch_error: PyTorch's own error on the same problem, if it is known.
    """
    relative = TORCH_FACTOR * torch_error if torch_error is not None else 0.0
    return min(WORST_LIMIT, max(LIMITS[dtype], relative))


def oracle(problem: Problem, pass_: Pass, operands: Operands) -> Oracle:
    """Return the definition's result, on a part of the output where all of it is too much.

    Forward and input gradient: all, else as many channels of the last image as `MOST_MACS` allows. Weight gradient,
    which sums over all images: all, else some channels, else some taps of one channel. Parts are spread evenly and hold
    the last channel.

    Args:
        problem: What is computed.
        pass_: Which map.
        operands: Its inputs.
    """
    if problem.macs <= MOST_MACS:
        return Oracle(expected=_reference(problem, pass_, operands.double()), part=lambda y: y, how="the whole result")
    if pass_ == "grad_weight":
        return _of_weight(problem, operands)
    per_channel = problem.macs // (problem.batch * problem.channels)
    chosen = _spread(problem.channels, max(1, MOST_MACS // per_channel))
    last = slice(problem.batch - 1, problem.batch)
    part = operands.part(last, chosen).double()
    small = replace(problem, batch=1, channels=len(chosen))
    return Oracle(
        expected=_reference(small, pass_, part),
        part=lambda y: y[last, chosen],
        how=f"{len(chosen)} of {problem.channels} channels of the last image",
    )


def _of_weight(problem: Problem, operands: Operands) -> Oracle:
    per_channel = problem.macs // problem.channels
    chosen = _spread(problem.channels, max(1, MOST_MACS // per_channel))
    part = operands.part(slice(None), chosen).double()
    if per_channel <= MOST_MACS:
        small = replace(problem, channels=len(chosen))
        return Oracle(
            expected=_reference(small, "grad_weight", part),
            part=lambda w: w[chosen],
            how=f"{len(chosen)} of {problem.channels} channels",
        )
    width = problem.kernel_size[1]
    taps = _spread(problem.kernel_size[0] * width, MOST_TAPS)
    top, left = problem.padding
    padded = F.pad(part.x, (left, left, top, top))
    values = [_tap(padded, part.grad, problem, *divmod(tap, width)) for tap in taps]
    return Oracle(
        expected=torch.stack(values),
        part=lambda w: w[chosen[0], 0].flatten()[taps],
        how=f"{len(taps)} of {problem.kernel_size[0] * width} taps of 1 of {problem.channels} channels",
    )


def _tap(padded: Tensor, grad: Tensor, problem: Problem, i: int, j: int) -> Tensor:
    height, width = problem.output_size
    top, left = i * problem.dilation[0], j * problem.dilation[1]
    rows = slice(top, top + (height - 1) * problem.stride[0] + 1, problem.stride[0])
    columns = slice(left, left + (width - 1) * problem.stride[1] + 1, problem.stride[1])
    return (padded[..., rows, columns] * grad).sum()


def _reference(problem: Problem, pass_: Pass, operands: Operands) -> Tensor:
    return operands.run(ReferenceBackend(), pass_, replace(problem, dtype=torch.float64))


def _spread(size: int, count: int) -> list[int]:
    """Return at most `count` indices below `size`, evenly spread, the last one among them."""
    count = min(size, count)
    return [size - 1 - index * size // count for index in range(count)][::-1]
