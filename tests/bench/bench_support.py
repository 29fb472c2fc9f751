"""What the benchmark tests share: a clock that the work itself moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from widefield.bench.entries import MapEntry, Result, Shape
from widefield.bench.environment import Environment
from widefield.bench.race import Contestant
from widefield.bench.timers import CpuTimer
from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem


@dataclass
class Clock:
    now: float = 0.0
    runs: dict[str, int] = field(default_factory=dict)

    def __call__(self) -> float:
        return self.now

    def timer(self) -> CpuTimer:
        return CpuTimer(self)

    def work(self, name: str, seconds: float, first: float | None = None) -> Callable[[int], None]:
        """A call that takes so long; the first run may take longer."""

        def call(index: int) -> None:
            count = self.runs.get(name, 0)
            self.runs[name] = count + 1
            self.now += first if first is not None and count == 0 else seconds

        return call

    def contestant(self, name: str, seconds: float, first_image: float | None = None) -> Contestant:
        single = None if first_image is None else self.work(f"{name} first image", first_image)
        return Contestant(name=name, call=self.work(name, seconds), first_image=single)


def problem(batch: int = 2, channels: int = 3, size: int = 8, kernel_size: int = 5, **rest: object) -> Problem:
    return Problem(
        batch=batch,
        channels=channels,
        height=size,
        width=size,
        kernel_size=(kernel_size, kernel_size),
        padding=(kernel_size // 2, kernel_size // 2),
        **rest,
    )


def environment(**changes: object) -> Environment:
    values = {
        "device": "a CPU",
        "device_type": "cpu",
        "capability": "AVX2",
        "threads": 2,
        "torch": "2.15.0",
        "triton": "3.9.0",
        "cuda": "",
        "python": "3.11.7",
        "widefield": "0.1.0",
        "commit": "0123456789abcdef",
        "is_dirty": False,
        "date": "2026-11-21T00:00:00+00:00",
    }
    return Environment(**(values | changes))


def entry(pass_: Pass, times: dict[str, float], chosen: str, *, size: int = 8, kernel_size: int = 5) -> MapEntry:
    """Times in ms; a negative one is a lower bound."""
    results = [
        Result(name=name, at_least_ms=-ms, how="a bound")
        if ms < 0
        else Result(name=name, median_ms=ms, q10_ms=0.5 * ms, q90_ms=2 * ms, rounds=5, relative_error=1e-7)
        for name, ms in times.items()
    ]
    return MapEntry(
        problem=Shape.of(problem(size=size, kernel_size=kernel_size)),
        runs_as=(kernel_size, kernel_size),
        pass_=pass_,
        oracle="the whole result",
        error_limit=1e-5,
        chosen=chosen,
        results=tuple(results),
    )


class Wrong:
    """A backend that is off by a factor, or not finite."""

    summary = "wrong"

    def __init__(self, name: str, factor: float) -> None:
        self.name = name
        self._factor = factor

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        return []

    def forward(self, x: torch.Tensor, *rest: object) -> torch.Tensor:
        return self._factor * x

    grad_input = forward

    def grad_weight(self, grad: torch.Tensor, x: torch.Tensor, problem: Problem) -> torch.Tensor:
        return self._factor * torch.ones(problem.channels, 1, *problem.kernel_size)
