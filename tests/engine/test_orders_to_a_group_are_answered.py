from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.group_run import draw, trainer
from engine.small_run import weights_bytes
from safetensors.torch import load_file

from widefield._core.errors import RunError
from widefield.cli.main import main
from widefield.engine import RunFolder, latest_checkpoint

SCRIPT = Path(__file__).with_name("group_run.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def same(one: Path, other: Path, name: str) -> bool:
    first, second = load_file(one / name), load_file(other / name)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_the_stop_checkpoint_is_written_and_no_loader_process_is_left(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), "SIGTERM,SIGINT", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["whole"] == 0, done.stderr
    assert found["orphans"] == {"workers": 2, "left": 0}
    for name, code in (("SIGTERM", 0), ("SIGINT", 130)):
        told: dict[str, Any] = found[name]
        assert (told["code"], told["resumed"]) == (code, 0), (told, done.stderr)
        # Of the step at hand, not only of the last epoch.
        assert int(told["kept"][-1].removeprefix("step_")) >= told["wanted"], told
        for file in ("model.safetensors", "average.safetensors"):
            assert same(tmp_path / "whole", tmp_path / name, file), (name, file)


@pytest.mark.slow
def test_a_launcher_and_its_ranks_leave_a_checkpoint_at_an_order_to_the_group(tmp_path: Path) -> None:
    draw(tmp_path / "images")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, *launcher, str(SCRIPT), str(tmp_path)]
    run = tmp_path / "run"
    with (tmp_path / "told").open("w") as told:
        started = subprocess.Popen(
            [*command, "begin", "0"], env=ENVIRONMENT, start_new_session=True, stdout=told, stderr=told
        )
        deadline = time.monotonic() + 60
        while not (run / "steps.csv").exists() or (run / "steps.csv").read_text().count("\n") < 4:
            assert time.monotonic() < deadline, (tmp_path / "told").read_text()
            time.sleep(0.01)
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(120)
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None, (tmp_path / "told").read_text()
    assert newest.name >= "step_00000006"
    command += ["resume", "0"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (run / "model.safetensors").exists()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_a_loader_process_that_is_killed_ends_the_run_in_one_sentence_with_a_checkpoint(tmp_path: Path) -> None:
    draw(tmp_path / "images")
    whole = trainer(RunFolder.create(tmp_path / "whole", False, 0), tmp_path / "images", workers=0)
    whole.fit()
    folder = RunFolder.create(tmp_path / "run", False, 0)
    cut = trainer(folder, tmp_path / "images")
    before = signal.getsignal(signal.SIGCHLD)

    def kill(loss: torch.Tensor) -> torch.Tensor:
        for worker in torch.multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        time.sleep(0.1)  # The main thread is told within its step.
        return loss

    updates: list[object] = []
    cut.optimizer.register_step_post_hook(lambda *step: updates.append(step))
    cut.task.at_loss[10] = kill  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with pytest.raises(RunError) as caught:
            cut.fit()
    finally:
        signal.signal(signal.SIGCHLD, before)
    newest = latest_checkpoint(folder.checkpoints)
    # Batches that had come before the death are still trained on: how many is a matter of time, but none is lost.
    assert len(updates) >= 10
    assert newest == folder.checkpoints / f"step_{len(updates):08d}"
    assert str(caught.value) == (
        "A loader process was killed, most often for want of memory or of shared memory: lower --data.workers or "
        f"--data.batch-size, or raise the memory limits. The last complete checkpoint, {newest}, is kept."
    )
    again = trainer(folder, tmp_path / "images", workers=0)
    again.fit(resume=True)
    assert weights_bytes(again) == weights_bytes(whole)


def test_ctrl_c_ends_the_command_line_with_what_was_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from widefield.cli import models

    def interrupted(words: object) -> None:
        raise KeyboardInterrupt("Stopped by SIGINT after step 5: resume the run; everything up to that step is kept.")

    monkeypatch.setattr(models, "run", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err.startswith("Stopped by SIGINT after step 5: resume the run")
