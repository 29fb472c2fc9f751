"""How one sample of a duration is taken: on a CPU by the clock, on a GPU by events around a replayed graph."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Call = Callable[[int], object]
"""A computation; the argument says which of several equal sets of inputs it reads."""

Sampler = Callable[[], float]
"""Takes one sample: seconds of a single call."""

SAMPLE_S = 2e-3
"""Calls shorter than this are repeated within one sample."""

MOST_REPEATS = 100


class Timer(Protocol):
    """Takes samples on one kind of device."""

    input_sets: int
    """How many equal sets of inputs the calls may be given in turn."""

    def now(self) -> float:
        """Return the seconds of a running clock."""
        ...

    def once(self, call: Call) -> float:
        """Run a call once, to its end, and return its seconds."""
        ...

    def sampler(self, call: Call, about_s: float) -> Sampler:
        """Return what takes samples of a call that lasts `about_s` seconds."""
        ...


class CpuTimer:
    """Wall time.

    Args:
        clock: Returns seconds.
    """

    input_sets = 1

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def now(self) -> float:
        """Return the clock's seconds."""
        return self._clock()

    def once(self, call: Call) -> float:
        """Run a call once and return its seconds."""
        start = self._clock()
        call(0)
        return self._clock() - start

    def sampler(self, call: Call, about_s: float) -> Sampler:
        """Return what times as many calls as last about `SAMPLE_S` and divides by their number."""
        repeats = repeats_for(about_s)

        def sample() -> float:
            start = self._clock()
            for _ in range(repeats):
                call(0)
            return (self._clock() - start) / repeats

        return sample


class CudaTimer:
    """GPU time by events, around the replay of a CUDA graph where the call can be captured.

    The calls read `input_sets` sets of inputs in turn, so that none finds its input in the L2 cache.

    Args:
        input_sets: Number of sets; `sets_beyond_cache` gives one.
    """

    def __init__(self, input_sets: int) -> None:
        self.input_sets = input_sets

    def now(self) -> float:
        """Return the seconds of the host's clock; samples have come to their end when they return."""
        return time.perf_counter()

    def once(self, call: Call) -> float:
        """Run a call once and return its seconds, launch included."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        call(0)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def sampler(self, call: Call, about_s: float) -> Sampler:
        """Return what times one pass over the sets, repeated for short calls, and divides by the number of calls."""
        passes = max(1, math.ceil(repeats_for(about_s) / self.input_sets))
        count = passes * self.input_sets

        def run_all() -> None:
            for index in range(count):
                call(index % self.input_sets)

        graph = _captured(run_all)
        replay = run_all if graph is None else graph.replay

        def sample() -> float:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            replay()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1000 / count

        sample()
        return sample


def repeats_for(about_s: float) -> int:
    """Return how many calls of `about_s` seconds one sample takes."""
    return max(1, min(MOST_REPEATS, math.ceil(SAMPLE_S / max(about_s, 1e-9))))


def sets_beyond_cache(size_bytes: int, cache_bytes: int, most: int = 8) -> int:
    """Return how many input sets of `size_bytes` together are at least twice the cache; 1 if one set is."""
    return max(1, min(most, math.ceil(2 * cache_bytes / max(size_bytes, 1))))


def timer_for(device: str, size_bytes: int) -> Timer:
    """Return the timer of a device type.

    Args:
        device: "cpu" or "cuda".
        size_bytes: Bytes of one set of inputs.
    """
    if device == "cuda":
        return CudaTimer(sets_beyond_cache(size_bytes, torch.cuda.get_device_properties(0).L2_cache_size))
    return CpuTimer()


def _captured(run: Callable[[], None]) -> Any | None:
    """Return a CUDA graph of `run`, or none if something in it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        # What cannot be captured is timed launch by launch.
        torch.cuda.synchronize()
        return None
    return graph
