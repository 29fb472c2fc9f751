"""Single measurements as they stand in records: a map of a problem with all its candidates, or a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from widefield.bench.race import Timing
from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Layout, Problem

Form = Literal["merged", "branched", "as it is"]

AUTO = "auto"
"""The dispatcher's choice, as a name beside those of backends."""

TORCH = ("aten", "channels_last")
"""Candidates that are PyTorch's own convolution, as the input lies and in the other memory format."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A `Problem` in plain values."""

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: tuple[int, int]
    padding: tuple[int, int]
    dtype: str
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    device: str = "cpu"
    layout: Layout = "contiguous"

    @classmethod
    def of(cls, problem: Problem) -> Shape:
        """Return a problem's shape."""
        return cls(
            batch=problem.batch,
            channels=problem.channels,
            height=problem.height,
            width=problem.width,
            kernel_size=problem.kernel_size,
            padding=problem.padding,
            dtype=str(problem.dtype).removeprefix("torch."),
            stride=problem.stride,
            dilation=problem.dilation,
            device=problem.device_type,
            layout=problem.layout,
        )

    def problem(self) -> Problem:
        """Return the problem that this describes."""
        return Problem(
            batch=self.batch,
            channels=self.channels,
            height=self.height,
            width=self.width,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            dtype=getattr(torch, self.dtype),
            device_type=self.device,
            layout=self.layout,
        )


@dataclass(frozen=True, kw_only=True)
class Result:
    """One candidate: times in milliseconds, or why there are none."""

    name: str
    median_ms: float | None = None
    q10_ms: float | None = None
    q90_ms: float | None = None
    rounds: int = 0
    """Samples that the quantiles are of."""
    at_least_ms: float | None = None
    """A lower bound, for a candidate that was not worth timing in full."""
    how: str = ""
    """How the lower bound was got, or with which settings the candidate ran."""
    relative_error: float | None = None
    """Against the definition in float64 (Euclidean norms), on what the entry's `oracle` says."""
    is_wrong: bool = False
    """Whether the error is above the entry's limit: then nothing was timed."""
    refusals: tuple[str, ...] = ()
    """Why the backend cannot run this."""
    failure: str = ""
    """The exception that it raised."""

    @property
    def least_ms(self) -> float:
        """The median, or the lower bound; infinite if there is neither."""
        known = [value for value in (self.median_ms, self.at_least_ms) if value is not None]
        return known[0] if known else math.inf

    def with_timing(self, timing: Timing) -> Result:
        """Return the same with times."""
        return Result(
            name=self.name,
            median_ms=timing.median_ms,
            q10_ms=timing.q10_ms,
            q90_ms=timing.q90_ms,
            rounds=timing.rounds,
            at_least_ms=timing.at_least_ms,
            how=timing.how or self.how,
            relative_error=self.relative_error,
        )


@dataclass(frozen=True, kw_only=True)
class MapEntry:
    """One map of one problem, and every candidate for it."""

    problem: Shape
    runs_as: tuple[int, int]
    """Kernel size without the taps that meet no pixel: what the candidates computed."""
    pass_: Pass
    oracle: str
    """What was compared with the definition."""
    error_limit: float
    chosen: str
    """The backend that the dispatcher chooses."""
    results: tuple[Result, ...]

    def result(self, name: str) -> Result | None:
        """Return a candidate's result, or none if there is no such candidate."""
        return next((result for result in self.results if result.name == name), None)

    @property
    def wrong(self) -> tuple[str, ...]:
        """Names of the candidates that failed the correctness gate."""
        return tuple(result.name for result in self.results if result.is_wrong)

    @property
    def best_ms(self) -> float:
        """Median of the fastest backend, infinite if none was timed."""
        backends = [result for result in self.results if result.name != AUTO]
        return min((result.median_ms for result in backends if result.median_ms is not None), default=math.inf)

    @property
    def chosen_ms(self) -> float:
        """Median, or lower bound, of the chosen backend."""
        result = self.result(self.chosen)
        return math.inf if result is None else result.least_ms

    @property
    def chosen_over_best(self) -> float:
        """How many times as long as the fastest backend the chosen one takes, 1 at best."""
        return self.chosen_ms / self.best_ms

    @property
    def speedup_over_torch(self) -> float:
        """How many times as long the faster of PyTorch's two memory formats takes as the chosen backend, at least."""
        return min((r.least_ms for r in self.results if r.name in TORCH), default=math.nan) / self.chosen_ms


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One network in one form, run in one way."""

    model: str
    form: Form
    """Ours merged or in train form; other networks have one form."""
    mode: Literal["inference", "train_step"]
    backend: str
    """Forced backend of depthwise convolutions, or "auto"; empty for networks that do not use them."""
    batch: int
    image_size: int
    dtype: str
    device: str
    layout: Layout
    is_compiled: bool
    parameters: int
    result: Result

    @property
    def images_per_s(self) -> float:
        """Throughput at the median; 0 if nothing was timed."""
        return 0.0 if self.result.median_ms is None else 1000 * self.batch / self.result.median_ms
