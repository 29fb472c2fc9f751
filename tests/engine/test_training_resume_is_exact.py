from __future__ import annotations

import csv
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine.small_run import Classify, Images, make_trainer, weights_bytes
from safetensors.torch import load_file

from widefield._core.errors import InputError
from widefield.engine import RunFolder, latest_checkpoint, read_checkpoint
from widefield.engine.checkpointing import best_weights_path

if TYPE_CHECKING:
    from pathlib import Path

CHANGES: dict[str, Any] = {
    "epochs": 3,
    "checkpoint_every_steps": 2,
    "ema": {"decay": 0.9},
    "accumulate_steps": 2,
    "log_every_steps": 3,
}
"""3 steps an epoch (2, 2 and 1 batches), checkpoints at steps 2, 3, 4, 6, 8, 9."""


def without_seconds(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def orders(path: Path, kills: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = [
        {"folder": str(path), "resume": number > 0, "changes": CHANGES, **kill} for number, kill in enumerate(kills)
    ]
    return [*made, {"folder": str(path), "resume": bool(kills), "changes": CHANGES}]


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(run_small: Any, tmp_path: Path) -> None:
    # Losses count from 1 in each process, 5 an epoch. Every save syncs 4 times, epoch ends 2 times more for the best.
    plans: list[list[dict[str, Any]]] = [
        [],
        [{"kill_at_loss": [1]}, {"kill_at_loss": [5]}, {"kill_at_loss": [4]}],  # before any checkpoint, in epochs 1, 2
        [{"kill_at_evaluation": [1]}, {"kill_at_loss": [8]}],  # after the last step of an epoch; in epoch 2
        *([{"kill_at_sync": number}] for number in (3, 5, 6, 8, 11, 14, 19)),  # within saves, of the best weights too
        [{"kill_at_sync": 5}, {"kill_at_sync": 9}, {"kill_at_sync": 2}],
    ]
    runs = [orders(tmp_path / str(number), kills) for number, kills in enumerate(plans)]
    done = run_small([order for run in runs for order in run])
    expected = [status for kills in plans for status in [*[-signal.SIGKILL] * len(kills), 0]]
    assert json.loads(done.stdout) == expected, done.stderr
    whole = tmp_path / "0"
    for number in range(1, len(plans)):
        path = tmp_path / str(number)
        for name in ("model.safetensors", "best.safetensors"):
            reference, got = load_file(whole / name), load_file(path / name)
            assert all(torch.equal(reference[key], got[key]) for key in reference), (number, name)
        assert without_seconds(path / "metrics.csv") == without_seconds(whole / "metrics.csv")
        assert (path / "steps.csv").read_text() == (whole / "steps.csv").read_text()
        assert not list((path / "checkpoints").rglob("*.partial"))
        last = [read_checkpoint(run / "checkpoints" / "step_00000009")[0] for run in (path, whole)]
        assert last[0].keys() == last[1].keys()
        assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_a_finished_run_resumes_to_its_result_without_training(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", False, 0)
    first = make_trainer(folder)
    done = first.fit()
    task = Classify(Images())
    again = make_trainer(folder, task=task)
    result = again.fit(resume=True)
    assert task.losses == 0
    assert weights_bytes(again) == weights_bytes(first)
    assert result.history == done.history
    assert result.best == done.best
    assert all(torch.equal(result.best_weights[name], done.best_weights[name]) for name in done.best_weights)


def test_a_damaged_newest_checkpoint_leads_to_the_same_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder.create(tmp_path / "run", False, 0)
    first = make_trainer(folder)
    first.fit()
    newest = latest_checkpoint(folder.checkpoints)
    assert newest is not None
    os.truncate(newest / "tensors.safetensors", 1000)
    again = make_trainer(folder)
    again.fit(resume=True)
    assert weights_bytes(again) == weights_bytes(first)
    assert f"Falling back to {folder.checkpoints / 'step_00000010'}" in caplog.text
    assert (folder.checkpoints / f"damaged_{newest.name}").is_dir()


def test_a_folder_with_a_run_is_not_trained_over(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", False, 0)
    make_trainer(folder, epochs=1).fit()
    with pytest.raises(InputError, match=r"Expected a run folder without a run in it, but got .*run, which has one"):
        make_trainer(folder).fit()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": {"decay": 0.9}}, "the same ema.decay as before, but got one that is on"),
        ({"optimizer": {"layer_decay": 0.5}}, "parameters and groups of the checkpoint, but got 8 parameters in"),
        ({"model": torch.nn.Sequential(torch.nn.Linear(2, 2))}, "Expected the tensors of this model, but got"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = RunFolder.create(tmp_path / "run", False, 0)
    make_trainer(folder, epochs=1).fit()
    with pytest.raises(InputError, match=message):
        make_trainer(folder, **changes).fit(resume=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("ranks", 2, r"Expected a run on 2 process\(es\), as before"), ("format", 9, "Expected a checkpoint of format 1")],
)
def test_a_checkpoint_of_another_world_is_refused(tmp_path: Path, name: str, value: int, message: str) -> None:
    from widefield.engine import save_checkpoint

    folder = RunFolder.create(tmp_path / "run", False, 0)
    make_trainer(folder, epochs=1).fit()
    newest = latest_checkpoint(folder.checkpoints)
    assert newest is not None
    tensors, state = read_checkpoint(newest)
    save_checkpoint(folder.checkpoints, 6, tensors, {**state, name: value})
    with pytest.raises(InputError, match=message):
        make_trainer(folder).fit(resume=True)


def test_lost_best_weights_are_named(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", False, 0)
    best = make_trainer(folder, epochs=1).fit()
    best_weights_path(folder.checkpoints, best.steps).unlink()
    with pytest.raises(InputError, match=r"Expected the best weights of the run, but got no file .*step_00000005"):
        make_trainer(folder, epochs=1).fit(resume=True)
