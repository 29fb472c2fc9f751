from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, Any

import pytest
from accelerate import Accelerator
from engine.small_run import Classify, DropPathNet, Images, make_trainer

from widefield._core.errors import InputError, RunError
from widefield.engine import RunFolder, latest_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch
    from torch import nn


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", False, 0)


def test_a_loss_that_is_not_finite_names_its_step_and_keeps_the_checkpoint(folder: RunFolder) -> None:
    task = Classify(Images())
    task.at_loss[8] = lambda loss: loss * float("nan")
    trainer = make_trainer(folder, task=task, log_every_steps=5, checkpoint_every_steps=2)
    with pytest.raises(RunError, match=r"The loss is nan at step 8 with learning rate 0\.\d+: lower optimizer\.lr"):
        trainer.fit()
    newest = latest_checkpoint(folder.checkpoints)
    assert newest is not None
    assert newest.name == "step_00000006"
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(newest)[0].values())


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_full_disk_is_told_and_the_last_checkpoint_kept(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real, full = getattr(os, call), [False]

    def refuse(*arguments: Any) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments)

    monkeypatch.setattr(os, call, refuse)
    task = Classify(Images())
    task.at_evaluation[2] = lambda: full.__setitem__(0, True)
    with pytest.raises(RunError, match=r"No space left on device\): free space on the disk and resume the run; .*kept"):
        make_trainer(folder, task=task).fit()
    full[0] = False
    newest = latest_checkpoint(folder.checkpoints)
    assert newest is not None
    assert newest.name == "step_00000005"
    result = make_trainer(folder).fit(resume=True)
    assert [row["epoch"] for row in result.history] == [1, 2, 3]


def test_a_file_size_limit_in_the_middle_of_a_save_is_told(folder: RunFolder) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    task = Classify(Images())
    task.at_evaluation[2] = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(RunError, match=r"^Writing .*step_00000010.* failed .*step_00000005, is kept\.$"):
            make_trainer(folder, task=task).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    newest = latest_checkpoint(folder.checkpoints)
    assert newest is not None
    assert newest.name == "step_00000005"


def test_a_loader_that_ends_early_is_told(folder: RunFolder) -> None:
    class Short(Images):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
            yield next(super().epoch(epoch, start))

    with pytest.raises(RunError, match="The loader ended after 1 of the 5 batches that its length promises in epoch 1"):
        make_trainer(folder, data=Short()).fit()


def test_an_empty_loader_is_refused(folder: RunFolder) -> None:
    with pytest.raises(InputError, match="Expected a loader with batches, but got an empty one"):
        make_trainer(folder, loader=[])


def test_a_frozen_model_is_refused(folder: RunFolder) -> None:
    with pytest.raises(InputError, match="but got one whose parameters are all frozen"):
        make_trainer(folder, model=DropPathNet().requires_grad_(False))


def test_an_accelerator_that_accumulates_is_refused(folder: RunFolder) -> None:
    with pytest.raises(InputError, match=r"but got one of 3 steps: set trainer.accumulate_steps instead"):
        make_trainer(folder, accelerator=Accelerator(cpu=True, gradient_accumulation_steps=3))
    Accelerator(cpu=True, gradient_accumulation_steps=1)


def test_a_metric_to_monitor_that_is_not_there_is_named(folder: RunFolder) -> None:
    task = Classify(Images())
    task.monitor = "accuracies"
    with pytest.raises(InputError, match="validation metric to monitor, but got 'accuracies': did you mean 'accuracy'"):
        make_trainer(folder, task=task).fit()


def test_a_metric_with_a_taken_name_is_refused(folder: RunFolder) -> None:
    class Taken(Classify):
        def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
            return {**super().evaluate(model, device), "lr": 1.0}

    with pytest.raises(InputError, match="names other than epoch, step, lr, train_loss, skipped, seconds, but got lr"):
        make_trainer(folder, task=Taken(Images())).fit()


def test_the_model_is_given_back_after_a_failure(folder: RunFolder) -> None:
    task = Classify(Images())
    task.at_loss[2] = lambda loss: loss * float("inf")
    model = DropPathNet()
    with pytest.raises(RunError, match="The loss is inf at step 2"):
        make_trainer(folder, task=task, model=model, precision="bf16").fit()
    assert "forward" not in vars(model)
    assert all(parameter.grad is None for parameter in model.parameters())
