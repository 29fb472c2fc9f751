from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from accelerate import Accelerator
from engine.small_run import STOPPED, Classify, Images, make_trainer, weights_bytes
from safetensors.torch import load_file

from widefield.engine import RunFolder, RunInterruptedError, latest_checkpoint
from widefield.engine.interruption import StopSignals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHANGES: dict[str, Any] = {"epochs": 3, "ema": {"decay": 0.9}, "accumulate_steps": 2, "log_every_steps": 3}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", False, 0)


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def stopped(folder: RunFolder, task: Classify, message: str, step: int, **changes: Any) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(RunInterruptedError, match=message):
        make_trainer(folder, task=task, **changes).fit()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    newest = latest_checkpoint(folder.checkpoints)
    assert newest is not None
    assert newest.name == f"step_{step:08d}"


@pytest.mark.parametrize(
    ("name", "at_loss", "step"), [("SIGTERM", 1, 1), ("SIGUSR1", 8, 5), ("SIGTERM", 10, 6), ("SIGUSR1", 15, 9)]
)
def test_the_step_at_hand_is_finished_and_the_rest_comes_out_the_same(
    tmp_path: Path, name: str, at_loss: int, step: int
) -> None:
    whole = make_trainer(RunFolder.create(tmp_path / "whole", False, 0), **CHANGES)
    result = whole.fit()
    folder, task = RunFolder.create(tmp_path / "run", False, 0), Classify(Images())
    task.at_loss[at_loss] = lambda loss: (send(name), loss)[1]
    text = f"^Stopped by {name} after step {step}: resume the run; everything up to that step is kept.$"
    stopped(folder, task, text, step, **CHANGES)
    again = make_trainer(folder, **CHANGES)
    rest = again.fit(resume=True)
    assert weights_bytes(again) == weights_bytes(whole)
    assert all(torch.equal(rest.best_weights[key], result.best_weights[key]) for key in result.best_weights)
    plain = [[{**row, "seconds": 0} for row in run.history] for run in (rest, result)]
    assert plain[0] == plain[1]


def test_a_validation_is_given_up_and_done_anew(tmp_path: Path) -> None:
    class Drawing(Classify):
        """Draws from the global generator, and calls the model again and again."""

        calls = 0

        def evaluate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
            torch.rand(3)
            for _ in range(4):
                self.calls += 1
                metrics = super().evaluate(model, device)
            return metrics

    runs = []
    for name, signals_at in (("whole", 0), ("run", 2)):
        folder, task = RunFolder.create(tmp_path / name, False, 0), Drawing(Images())
        task.at_evaluation[signals_at] = lambda: send("SIGTERM")
        if signals_at:
            stopped(folder, task, "Stopped by SIGTERM after step 3", 3, **CHANGES)
            assert task.calls == 2
            task = Drawing(Images())
        trainer = make_trainer(folder, task=task, **CHANGES)
        trainer.fit(resume=bool(signals_at))
        runs.append(weights_bytes(trainer))
    assert runs[0] == runs[1]


def test_a_signal_after_the_last_call_of_the_model_ends_the_run_after_the_epoch(folder: RunFolder) -> None:
    task = Classify(Images())

    class Late(Classify):
        def evaluate(self, model: torch.nn.Module, device: torch.device) -> dict[str, float]:
            metrics = super().evaluate(model, device)
            if self.evaluations == 3:
                send("SIGUSR1")
            return metrics

    task = Late(Images())
    stopped(folder, task, "Stopped by SIGUSR1 after step 15", 15)
    assert make_trainer(folder).fit(resume=True).steps == 15


def test_a_second_signal_has_its_own_effect_once_it_cannot_be_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    try:
        with ExitStack() as stack:
            signals = StopSignals(stack, Accelerator(cpu=True))
            assert not signals.is_asked
            for moment in (100.0, 101.5):
                clock[0] = moment
                send("SIGTERM")
                assert (signals.is_asked, seen) == (True, [])
            clock[0] = 102.5
            send("SIGTERM")
            assert seen == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_forked_children_die_of_sigterm_and_outlive_sigusr1() -> None:
    with ExitStack() as stack:
        signals = StopSignals(stack, Accelerator(cpu=True))
        for names, status in ((["SIGTERM"], -signal.SIGTERM), (["SIGUSR1"], 5)):
            child = os.fork()
            if not child:
                for name in names:
                    send(name)
                os._exit(5)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
        assert not signals.is_asked


def test_another_thread_trains_without_handlers(folder: RunFolder) -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def note() -> Iterator[None]:
        seen.append(signal.getsignal(signal.SIGTERM))

    task = Classify(Images())
    task.at_evaluation[1] = note
    thread = threading.Thread(target=lambda: make_trainer(folder, task=task, epochs=1).fit())
    thread.start()
    thread.join()
    assert seen == [before]


def test_one_rank_that_is_told_stops_both_at_one_step(tmp_path: Path, run_small: Any) -> None:
    changes = {"epochs": 4, "log_every_steps": 100, "ema": {"decay": 0.9}}
    shared = {"changes": changes, "masked": True, "ranks": 2}
    cut = {**shared, "folder": str(tmp_path / "cut")}
    orders = [
        {**shared, "folder": str(tmp_path / "whole"), "resume": False},
        {**cut, "resume": False, "signal_at_loss": [[8, "SIGUSR1"]], "signal_rank": 1},
        {**cut, "resume": True},
    ]
    done = run_small(orders)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, STOPPED, 0], done.stderr
    for name in ("model.safetensors", "best.safetensors", "checkpoints/step_00000020/tensors.safetensors"):
        one, other = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_ranks_ask_one_another_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from widefield.engine import interruption

    clock, asked, others = [0.0], [], [0.0]

    class Two:
        num_processes, device = 2, torch.device("cpu")

    def reduce(both: torch.Tensor) -> None:
        asked.append(clock[0])
        both[0] += others[0]
        both[1] *= 2

    monkeypatch.setattr(interruption.dist, "all_reduce", reduce)
    monkeypatch.setattr(interruption.time, "perf_counter", lambda: clock[0])
    with ExitStack() as stack:
        signals: Any = StopSignals(stack, Two())  # pyright: ignore[reportArgumentType]
        for step in range(1, 100):
            clock[0] = 0.5 * step
            others[0] = float(clock[0] > 30)
            if signals.is_agreed(step):
                break
    assert asked[:2] == [0.5, 1.0]
    assert max(later - earlier for earlier, later in itertools.pairwise(asked)) == 10.0
    assert 30 < clock[0] <= 41
