from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from engine.small_run import Classify, Images, make_trainer
from torch import nn

from widefield.engine import LogReporter, RunFolder, read_checkpoint


class Unscored(Classify):
    monitor = None

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        raise AssertionError("there is nothing to validate on")


def test_a_task_that_monitors_nothing_keeps_the_last_weights(tmp_path: Path) -> None:
    told: list[bool] = []

    class Note(LogReporter):
        def epoch_done(self, epoch: int, row: Mapping[str, float], is_best: bool) -> None:
            told.append(is_best)

    folder = RunFolder.create(tmp_path / "run", False, 0)
    changes = {"epochs": 3, "ema": {"decay": 0.7}}
    result = make_trainer(folder, task=Unscored(Images()), reporter=Note(), **changes).fit()
    assert (result.best_epoch, result.best, result.last, told) == (3, {}, {}, [False] * 3)
    tensors, state = read_checkpoint(folder.checkpoints / "step_00000015")
    assert state["origin"] == {}
    assert all(torch.equal(value, tensors[f"ema/{name}"]) for name, value in result.best_weights.items())
    again = make_trainer(folder, task=Unscored(Images()), **changes).fit(resume=True)
    assert again.history == result.history
