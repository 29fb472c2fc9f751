"""How long a forward pass takes on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from widefield._core.checks import check

LEAST_RUNS, MOST_RUNS = 5, 1000


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Times of one forward pass of a batch, in milliseconds: the median and other quantiles of `runs` of them."""

    batch: int
    p05_ms: float
    p25_ms: float
    median_ms: float
    p75_ms: float
    p95_ms: float
    runs: int
    threads: int
    """That PyTorch computes with on a CPU."""
    device: str

    @property
    def images_per_s(self) -> float:
        """Images of the batch for each second of the median time."""
        return 1000 * self.batch / self.median_ms


@torch.no_grad()
def measure_latency(model: nn.Module, example: Tensor, *, warmup: int = 3, budget_s: float = 5.0) -> Latency:
    """Run a network again and again, and take the time of each run, to its end on the device.

    Args:
        model: In evaluation mode, on the device of the example.
        example: Its input, (N, C, H, W) for images; N is the batch.
        warmup: Runs before the first one that counts.
        budget_s: Seconds for the runs that count; at least 5 are made whatever they take, and at most 1000.

    Returns:
        Quantiles, linear between the two nearest times.

    Raises:
        InputError: If the network is in training mode, or a number is negative.
    """
    check(not model.training, "a network in evaluation mode to time", "one in training mode", "call model.eval() first")
    check(warmup >= 0 and budget_s >= 0, "positive numbers", f"{warmup} and {budget_s}", "raise warmup and budget_s")
    for _ in range(warmup):
        _seconds(model, example)
    times: list[float] = []
    while len(times) < LEAST_RUNS or (sum(times) < budget_s and len(times) < MOST_RUNS):
        times.append(_seconds(model, example))
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    p05, p25, median, p75, p95 = (1000 * torch.tensor(times, dtype=torch.float64).quantile(levels)).tolist()
    return Latency(
        batch=example.shape[0],
        p05_ms=p05,
        p25_ms=p25,
        median_ms=median,
        p75_ms=p75,
        p95_ms=p95,
        runs=len(times),
        threads=torch.get_num_threads(),
        device=str(example.device),
    )


def _seconds(model: nn.Module, example: Tensor) -> float:
    _finish(example)
    start = time.perf_counter()
    model(example)
    _finish(example)
    return time.perf_counter() - start


def _finish(example: Tensor) -> None:
    if example.device.type != "cpu":
        torch.accelerator.synchronize(example.device)
