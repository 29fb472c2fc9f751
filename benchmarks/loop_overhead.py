"""What the trainer adds to a bare PyTorch loop over the same model and batches: time of a step, peak memory.

    OMP_NUM_THREADS=2 python benchmarks/loop_overhead.py benchmarks/results/loop_overhead.json

Both loops take turns within one process, on the same batches, with AdamW, no average and no clipping; then with them,
where the bare loop does by hand what the trainer is asked for. A step lasts from one request for a batch to the next;
the first steps of each turn, in which a process warms up, are left out, and so are checkpoints and logs of the end of
an epoch, which a bare loop has not. "per_step_us" is the same difference on a model that is next to nothing, where it
can be seen. Memory is the peak of the resident set above what was there before the turn (Linux only).
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import widefield
from widefield.bench.environment import environment
from widefield.engine import EmaConfig, OptimizerConfig, RunFolder, ScheduleConfig, Trainer, TrainerConfig

Batch = tuple[Tensor, Tensor]
ROUNDS, STEPS, WARM = 4, 16, 4
NETWORKS = {
    "unireplknet_a 128 px batch 8": ("unireplknet_a", 8, 128),
    "replknet_nano 128 px batch 32": ("replknet_nano", 32, 128),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average, clipping and skipping": {"ema": 0.99, "clip_norm": 1.0, "skip_nonfinite": 5},
}


class Batches:
    """The same batches every time, with the moment of each request."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.moments = batches, [0.0]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.moments = []
        for batch in self.batches[start:]:
            self.moments.append(time.perf_counter())
            yield batch


class Classify:
    monitor = "none"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        return {"none": 0.0}


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def bare(model: nn.Module, data: Batches, ema: float | None = None, clip_norm: float | None = None, **_: int) -> None:
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    average = None if ema is None else ModelEmaV3(model, decay=ema)
    for step, batch in enumerate(data.epoch(0), 1):
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model, step)


def ours(model: nn.Module, data: Batches, ema: float | None = None, **changes: Any) -> None:
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder.create(Path(path) / "run", False, 0)
        Trainer(
            model,
            Classify(),
            data,
            folder,
            trainer=TrainerConfig(epochs=1, device="cpu", tensorboard=True, **changes),
            optimizer=OptimizerConfig(lr=1e-3),
            schedule=ScheduleConfig(warmup_epochs=0),
            ema=EmaConfig(decay=ema),
        ).fit()


def turn(loop: Any, model: nn.Module, data: Batches, changes: dict[str, Any]) -> tuple[list[float], int]:
    model = copy.deepcopy(model)
    gc.collect()
    # What earlier turns have freed goes back to the system, or it would hide what this one takes.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    loop(model, data, **changes)
    memory = peak_bytes() - before
    steps = [later - earlier for earlier, later in zip(data.moments, data.moments[1:], strict=False)]
    return steps[WARM:], memory


def compare(model: nn.Module, data: Batches, changes: dict[str, Any], rounds: int) -> dict[str, float]:
    for loop in (bare, ours):
        turn(loop, model, data, changes)
    times: dict[Any, list[float]] = {bare: [], ours: []}
    memory: dict[Any, list[int]] = {bare: [], ours: []}
    for number in range(rounds):
        for loop in (bare, ours) if number % 2 == 0 else (ours, bare):
            steps, used = turn(loop, model, data, changes)
            times[loop] += steps
            memory[loop].append(used)
    step_s = {loop: median(values) for loop, values in times.items()}
    return {
        "bare_ms": 1e3 * step_s[bare],
        "ours_ms": 1e3 * step_s[ours],
        "time_ratio": step_s[ours] / step_s[bare],
        "fastest_time_ratio": min(times[ours]) / min(times[bare]),
        "bare_peak_mb": median(memory[bare]) / 1e6,
        "ours_peak_mb": median(memory[ours]) / 1e6,
        "memory_ratio": median(memory[ours]) / median(memory[bare]) if median(memory[bare]) else float("nan"),
    }


def random_batches(batch: int, size: int, count: int) -> Batches:
    return Batches([(torch.randn(batch, 3, size, size), torch.randint(10, (batch,))) for _ in range(count)])


def per_step_us() -> dict[str, float]:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    data = random_batches(2, 4, 400)
    found = {}
    for name, changes in VARIANTS.items():
        entry = compare(model, data, changes, 3)
        found[name] = 1e3 * (entry["ours_ms"] - entry["bare_ms"])
    return found


def main(path: Path) -> None:
    networks = []
    for name, (variant, batch, size) in NETWORKS.items():
        torch.manual_seed(0)
        model = widefield.create_model(variant, num_classes=10)
        data = random_batches(batch, size, STEPS)
        for kind, changes in VARIANTS.items():
            networks.append({"network": name, "loop": kind, **compare(model, data, changes, ROUNDS)})
            print(networks[-1])
    record = {"environment": asdict(environment("cpu")), "networks": networks, "per_step_us": per_step_us()}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
