from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = ("--data.workers", "0", "--trainer.epochs", "2", "--trainer.tensorboard", "False")
EVERY = ("--trainer.checkpoint-every-steps", "5")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "widefield", "train", *words]


def test_a_run_killed_within_an_epoch_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(*SETTINGS, *EVERY, "--output", str(whole)), env=environment, check=True, timeout=250)
    process = subprocess.Popen(command(*SETTINGS, *EVERY, "--output", str(broken)), env=environment)
    deadline = time.monotonic() + 200
    while not any((broken / "checkpoints").glob("step_*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert not (broken / "summary.json").exists(), "it was killed before the end"
    subprocess.run(command("--resume", str(broken)), env=environment, check=True, timeout=250)
    for name in ("model.safetensors", "merged.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
