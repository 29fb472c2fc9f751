from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine.small_run import Classify, HalfMasked, Images, make_trainer, weights_bytes

from widefield._core.errors import InputError, RunError
from widefield.engine import RunContext, RunFolder, latest_checkpoint, read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path


class Stateless:
    """Counts the steps of an epoch, and needs nothing of a checkpoint."""

    is_required = False

    def __init__(self, name: str = "counter", metric: str = "counted") -> None:
        self.name, self.metric = name, metric
        self.context: RunContext | None = None
        self.steps = 0
        self.gradients: list[bool] = []

    def started(self, context: RunContext) -> None:
        self.context = context

    def after_step(self, step: int) -> None:
        assert self.context is not None
        self.steps += 1
        self.gradients.append(all(parameter.grad is not None for parameter in self.context.model.parameters()))

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {}, {}

    def load_state_dict(self, tensors: Any, state: Any) -> None:
        assert (dict(tensors), state) == ({}, {})

    def metrics(self) -> dict[str, float]:
        return {self.metric: self.steps}

    def closed(self) -> None:
        self.context = None


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", False, 0)


def test_it_is_told_of_everything_in_order(folder: RunFolder) -> None:
    half, counter = HalfMasked(), Stateless()
    trainer = make_trainer(folder, epochs=2, ema={"decay": 0.5}, extensions=[half, counter])
    result = trainer.fit()
    assert half.told == ["started", *(f"step {number}" for number in range(1, 11)), "closed"]
    assert counter.gradients == [True] * 10
    assert counter.context is None
    assert [(row["masked"], row["counted"]) for row in result.history] == [(0.5, 5.0), (0.5, 10.0)]
    assert list(result.history[0])[-3:] == ["masked", "counted", "seconds"]
    assert result.best["masked"] == 0.5
    assert float((result.best_weights["stem.weight"] == 0).double().mean()) == 0.5


def test_the_context_names_the_run(folder: RunFolder) -> None:
    seen: list[RunContext] = []

    class Look(Stateless):
        def started(self, context: RunContext) -> None:
            super().started(context)
            seen.append(context)

    trainer = make_trainer(folder, epochs=2, accumulate_steps=2, extensions=[Look()])
    trainer.fit()
    [context] = seen
    assert context.model is trainer.model
    assert context.optimizer is trainer.optimizer
    assert (context.ema, context.steps_per_epoch, context.epochs) == (None, 3, 2)
    assert (context.rank, context.world_size, context.is_compiled) == (0, 1, False)


def test_its_tensors_and_state_are_in_the_checkpoint_and_come_back(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"checkpoint_every_steps": 2, "ema": {"decay": 0.5}}
    runs = []
    for name, fails_at in (("whole", 0), ("broken", 10)):
        folder, task = RunFolder.create(tmp_path / name, False, 0), Classify(Images())
        task.at_loss[fails_at] = lambda loss: loss * float("nan")
        half = HalfMasked()
        trainer = make_trainer(folder, task=task, extensions=[half], log_every_steps=1, **changes)
        if fails_at:
            with pytest.raises(RunError, match="The loss is nan at step 10"):
                trainer.fit()
            assert half.told[-1] == "closed"
            half = HalfMasked()
            trainer = make_trainer(folder, extensions=[half], log_every_steps=1, **changes)
            trainer.fit(resume=True)
            assert half.told[:3] == ["started", "loaded", "step 9"]
        else:
            trainer.fit()
        newest = latest_checkpoint(folder.checkpoints)
        assert newest is not None
        runs.append((weights_bytes(trainer), read_checkpoint(newest)))
    (weights, (tensors, state)), (other_weights, (other_tensors, other_state)) = runs
    assert weights == other_weights
    assert state["extensions"] == other_state["extensions"] == {"half": {"is_required": True, "state": {"changes": 5}}}
    assert torch.equal(tensors["extension.half/mask"], other_tensors["extension.half/mask"])
    assert torch.equal(tensors["model/stem.weight"] != 0, tensors["extension.half/mask"])


def test_a_checkpoint_without_its_state_is_refused(folder: RunFolder) -> None:
    make_trainer(folder, epochs=1).fit()
    with pytest.raises(
        InputError, match="Expected a checkpoint with the state of the extension 'half', but got one without it: resume"
    ):
        make_trainer(folder, extensions=[HalfMasked()]).fit(resume=True)


def test_a_run_without_what_the_checkpoint_needs_is_refused(folder: RunFolder) -> None:
    make_trainer(folder, epochs=1, extensions=[HalfMasked(), Stateless()]).fit()
    with pytest.raises(
        InputError, match="Expected a run with the extension 'half', as before, but got one without it: resume with"
    ):
        make_trainer(folder, extensions=[Stateless()]).fit(resume=True)


def test_one_that_is_not_required_may_come_and_go(folder: RunFolder) -> None:
    make_trainer(folder, epochs=1).fit()
    make_trainer(folder, epochs=2, extensions=[Stateless()]).fit(resume=True)
    result = make_trainer(folder, epochs=3).fit(resume=True)
    assert ["counted" in row for row in result.history] == [False, True, False]


@pytest.mark.parametrize("names", [["a", "a"], ["a/b"], [""]])
def test_names_that_would_mix_in_a_checkpoint_are_refused(folder: RunFolder, names: list[str]) -> None:
    with pytest.raises(InputError, match="Expected extensions of different names without slashes, but got '"):
        make_trainer(folder, extensions=[Stateless(name) for name in names]).fit()


@pytest.mark.parametrize("metric", ["accuracy", "seconds", "skipped"])
def test_a_metric_that_the_row_has_is_refused(folder: RunFolder, metric: str) -> None:
    with pytest.raises(
        InputError, match=f"Expected metrics of the extension 'counter' with names of their own, but got {metric}"
    ):
        make_trainer(folder, extensions=[Stateless(metric=metric)]).fit()
