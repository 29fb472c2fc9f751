from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

LONG: dict[str, Any] = {"epochs": 8, "drop": 0.0, "log_every_steps": 1, "ema": {"decay": 0.8}, "clip_norm": 1.0}
"""Without drop path, whose draws belong to a rank; 8 epochs of 3 steps are 24 steps of AdamW."""

SHORT: dict[str, Any] = {"epochs": 2, "checkpoint_every_steps": 2, "accumulate_steps": 2, "device": "auto"}

SCRIPT = Path(__file__).with_name("small_run.py")


def run_script(orders: list[dict[str, Any]], *launcher: str) -> subprocess.CompletedProcess[str]:
    """Run the small problem as ordered, in forked children of one process, or one after the other under a launcher.

    Without a launcher the exit statuses come as JSON on the standard output.
    """
    command = [sys.executable, *launcher, str(SCRIPT), json.dumps(orders)]
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


@pytest.fixture(scope="session")
def run_small() -> Callable[..., subprocess.CompletedProcess[str]]:
    return run_script


@dataclass(frozen=True)
class TwoProcesses:
    """What two ranks have left: their runs, and their standard error."""

    folder: Path
    errors: str


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    """A long run, BatchNorm against one process, a short run, and the short one killed in its second epoch."""
    path = tmp_path_factory.mktemp("two_processes")
    orders = [
        {"folder": str(path / "long"), "resume": False, "changes": LONG, "data": {"batches": 3, "size": 16}},
        {"module": "engine.sync_batch_norm_ranks"},
        {"folder": str(path / "whole"), "resume": False, "changes": SHORT},
        {"folder": str(path / "cut"), "resume": False, "changes": SHORT, "kill_at_loss": [9]},
    ]
    done = run_script(orders, *TORCHRUN)
    return TwoProcesses(path, done.stderr)
