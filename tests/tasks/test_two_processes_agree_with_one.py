"""The same global batches through one process and through two give the same losses.

At the recipe's own learning rate float32 rounding alone grows tenfold every few updates (one thread and two threads of
one process part likewise), so the curves are compared at a rate where training does not amplify it.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

WORDS = (
    *("train", "quickstart", "--augmentation.enabled", "False", "--data.workers", "0", "--trainer.epochs", "2"),
    *("--trainer.log-every-steps", "1", "--trainer.tensorboard", "False", "--trainer.device", "cpu"),
    *("--optimizer.lr", "2e-6", "--schedule.warmup-epochs", "0", "--data.batch-size", "64"),
)


def losses(path: Path) -> list[float]:
    with (path / "steps.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def launched(launcher: list[str], path: Path) -> list[float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "widefield", *WORDS, "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr
    return losses(path)


def test_torchrun_with_two_processes_gives_the_loss_curve_of_one(tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    one, two = launched([], tmp_path / "one"), launched(torchrun, tmp_path / "two")
    assert len(one) == len(two) == 2 * (1259 // 64)
    assert one[-1] < one[0]
    worst = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
    assert worst < 1e-5
