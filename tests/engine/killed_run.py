"""A script that kills runs at moments drawn from a seed, until they were killed as often as ordered."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from engine.small_run import fork
from safetensors.torch import load_file

CHANGES: dict[str, Any] = {
    "epochs": 6,
    "checkpoint_every_steps": 1,
    "ema": {"decay": 0.9},
    "accumulate_steps": 2,
    "log_every_steps": 2,
    "clip_norm": 1.0,
    "skip_nonfinite": 3,
}
"""18 steps, each with a checkpoint, so that many kills fall into saves."""


def curves(run: Path) -> list[list[str]]:
    """Return the rows of both curves without the last column of `metrics.csv`, which is a time."""
    rows = [line.rsplit(",", 1)[0] for line in (run / "metrics.csv").read_text().splitlines()]
    return [rows, (run / "steps.csv").read_text().splitlines()]


def differences(whole: Path, run: Path) -> list[str]:
    """Return what differs between a run that was never killed and one that was."""
    last = "checkpoints/step_00000018/tensors.safetensors"
    found = [] if curves(whole) == curves(run) else ["curves"]
    for name in ("model.safetensors", "best.safetensors", last):
        one, other = load_file(whole / name), load_file(run / name)
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            found.append(name)
    return found + [str(path) for path in (run / "checkpoints").rglob("*.partial")]


def main(folder: Path, kills: int, ranks: int, seed: int) -> dict[str, Any]:
    order = {"folder": str(folder / "whole"), "resume": False, "changes": CHANGES, "masked": True, "ranks": ranks}
    begun = time.monotonic()
    assert fork(order) == 0
    seconds = time.monotonic() - begun
    moments = random.Random(seed)
    done = within_saves = runs = lives = 0
    odd: list[str] = []
    while done < kills and lives < 10 * kills:
        runs += 1
        run = folder / str(runs)
        status = -signal.SIGKILL
        while status == -signal.SIGKILL:
            lives += 1
            life = {**order, "folder": str(run), "resume": run.exists()}
            if done < kills:
                life["kill_after_s"] = moments.uniform(0.1, 0.9) * seconds
            status = fork(life)
            if status == -signal.SIGKILL:
                done += 1
                within_saves += any((run / "checkpoints").rglob("*.partial"))
        odd += [f"run {runs} ended with {status}"] if status else differences(folder / "whole", run)
    return {"kills": done, "within_saves": within_saves, "runs": runs, "seconds": seconds, "differences": odd}


if __name__ == "__main__":
    import accelerate  # noqa: F401
    import timm  # noqa: F401

    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
