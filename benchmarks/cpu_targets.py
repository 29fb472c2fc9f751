"""Ratios to F.conv2d as PyTorch runs it, whole passes through autograd, and what our dispatch adds to a tiny problem.

    python benchmarks/cpu_targets.py benchmarks/results/cpu_targets.json

Batch 4, float32, NCHW. Both sides take turns within one process; a slow one runs but a few times. "forward" is
inference, where the kernel's spectrum is kept; in "forward + backward" the kernel changes at every step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.bench.environment import environment
from widefield.ops import depthwise_conv2d, explain
from widefield.ops.backends import PASSES

LAYERS = ((128, 56, 31), (96, 56, 31), (96, 56, 101), (256, 28, 29), (96, 56, 13))
BATCH = 4
ROUNDS, SLOW_ROUNDS, SLOW_S = 15, 2, 0.4
CALLS, REPEATS = 500, 21


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def in_turns(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    for _ in range(3):
        ours()
    first = seconds(theirs)
    rounds = SLOW_ROUNDS if first > SLOW_S else ROUNDS
    mine, other = [], [first]
    for turn in range(ROUNDS):
        mine.append(seconds(ours))
        if turn < rounds - 1:
            other.append(seconds(theirs))
    return median(mine), min(other) if rounds == SLOW_ROUNDS else median(other)


def layer(channels: int, size: int, kernel_size: int) -> dict[str, object]:
    x, grad = torch.randn(2, BATCH, channels, size, size).unbind(0)
    weight = torch.randn(channels, 1, kernel_size, kernel_size) / kernel_size
    half = kernel_size // 2

    def torch_conv(image: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(image, kernel, padding=half, groups=channels)

    def step(function: Callable[[Tensor, Tensor], Tensor]) -> None:
        image, kernel = x.detach().requires_grad_(), weight.detach().requires_grad_()
        function(image, kernel).backward(grad)
        weight.mul_(1.0)

    with torch.no_grad():
        error = float((depthwise_conv2d(x, weight) - torch_conv(x, weight)).norm() / torch_conv(x, weight).norm())
        forward = in_turns(lambda: depthwise_conv2d(x, weight), lambda: torch_conv(x, weight))
    training = in_turns(lambda: step(depthwise_conv2d), lambda: step(torch_conv))
    explanation = explain(BATCH, channels, size, size, kernel_size)
    return {
        "channels": channels,
        "size": size,
        "kernel_size": kernel_size,
        "backends": {pass_: explanation.chosen(pass_) for pass_ in PASSES},
        "relative_difference": error,
        "forward_ms": 1000 * forward[0],
        "forward_torch_ms": 1000 * forward[1],
        "forward_ratio": forward[1] / forward[0],
        "forward_backward_ms": 1000 * training[0],
        "forward_backward_torch_ms": 1000 * training[1],
        "forward_backward_ratio": training[1] / training[0],
    }


def overhead() -> dict[str, float]:
    """Microseconds that depthwise_conv2d adds to F.conv2d on C64 7x7 K3, batch 1, median over repeats in turns."""
    x, weight = torch.randn(1, 64, 7, 7), torch.randn(64, 1, 3, 3)

    def many(function: Callable[[], object]) -> float:
        return seconds(lambda: [function() for _ in range(CALLS)]) / CALLS * 1e6

    pairs = {}
    for name, kernel in (("inference", weight), ("with gradient", weight.clone().requires_grad_())):
        theirs = lambda kernel=kernel: F.conv2d(x, kernel, padding=1, groups=64)  # noqa: E731
        ours = lambda kernel=kernel: depthwise_conv2d(x, kernel)  # noqa: E731
        many(theirs), many(ours)
        differences = [(many(theirs), many(ours)) for _ in range(REPEATS)]
        pairs[f"{name}: F.conv2d"] = median([a for a, _ in differences])
        pairs[f"{name}: added"] = median([b - a for a, b in differences])
    return pairs


def main(path: Path) -> None:
    layers = [layer(*sizes) for sizes in LAYERS]
    by_kernel = {(entry["channels"], entry["kernel_size"]): entry for entry in layers}
    growth = {
        name: float(str(by_kernel[96, 101][name])) / float(str(by_kernel[96, 31][name]))
        for name in ("forward_ms", "forward_backward_ms")
    }
    record = {
        "environment": asdict(environment("cpu")),
        "layers": layers,
        "time_of_101_over_31": growth,
        "overhead_us": overhead(),
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
