from __future__ import annotations

import csv
import functools
import logging
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine.small_run import Batch, Classify, DropPathNet, Images, make_trainer
from torch import Tensor, nn
from torch.nn import functional as F

from widefield._core.errors import MissingExtraError
from widefield.engine import RunFolder
from widefield.engine.devices import seed_everything

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", False, 0)


def plain_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 4))


def test_it_is_the_bare_loop(folder: RunFolder) -> None:
    data, model, twin = Images(), DropPathNet(), DropPathNet()
    twin.load_state_dict(model.state_dict())
    changes: Any = {"schedule": {"name": "constant", "warmup_epochs": 0}, "optimizer": {"weight_decay": 0.0}}
    make_trainer(folder, data=data, model=model, epochs=2, **changes).fit()
    seed_everything(0)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    for epoch in range(2):
        twin.train()
        for batch in data.epoch(epoch):
            F.cross_entropy(twin(batch.images), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def test_accumulation_averages_to_the_large_batch_and_partial_groups_step(tmp_path: Path) -> None:
    large, small = Images(3, 8), Images(6, 4)
    runs = []
    for name, data, steps in (("large", large, 1), ("small", small, 2)):
        trainer = make_trainer(
            RunFolder.create(tmp_path / name, False, 0), data=data, model=plain_net(), accumulate_steps=steps
        )
        runs.append((trainer, trainer.fit()))
    assert runs[0][1].steps == runs[1][1].steps == 9
    for mine, other in zip(runs[0][0].model.parameters(), runs[1][0].model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    rows = [run[1].history[-1] for run in runs]
    assert rows[0]["train_loss"] == pytest.approx(rows[1]["train_loss"], rel=1e-4)
    partial = make_trainer(RunFolder.create(tmp_path / "partial", False, 0), accumulate_steps=3, epochs=2)
    assert (partial.steps_per_epoch, partial.fit().steps) == (2, 4)


def test_the_curves_are_written_with_full_precision(folder: RunFolder) -> None:
    result = make_trainer(folder, log_every_steps=4).fit()
    with folder.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "step", "lr", "train_loss", "accuracy", "loss", "seconds"]
    assert [{name: float(text) for name, text in row.items()} for row in rows] == result.history
    assert [row["step"] for row in rows] == ["5", "10", "15"]
    with folder.steps.open(newline="") as file:
        steps = list(csv.DictReader(file))
    assert [row["step"] for row in steps] == ["4", "8", "12", "15"]
    assert float(steps[-1]["lr"]) == result.history[-1]["lr"]


def test_train_loss_is_the_mean_over_the_epoch_and_steps_over_the_interval(folder: RunFolder) -> None:
    task, seen = Classify(Images()), []

    def note(loss: Tensor) -> Tensor:
        seen.append(loss.item())
        return loss

    task.at_loss = dict.fromkeys(range(1, 11), note)
    result = make_trainer(folder, task=task, epochs=2, log_every_steps=4).fit()
    assert result.history[1]["train_loss"] == pytest.approx(sum(seen[5:]) / 5)
    with folder.steps.open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx([sum(seen[:4]) / 4, sum(seen[4:8]) / 4, sum(seen[8:]) / 2])


def test_of_equal_epochs_the_later_is_kept_and_nan_is_never_better(folder: RunFolder) -> None:
    class Scripted(Classify):
        def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
            self.evaluations += 1
            return {"accuracy": [float("nan"), 0.5, 0.5, 0.2][self.evaluations - 1]}

    reported: list[bool] = []

    class Note:
        def run_started(self, epochs: int, steps_per_epoch: int, first_step: int) -> None:
            assert (epochs, steps_per_epoch, first_step) == (4, 5, 1)

        def step_done(self, epoch: int, step: int, loss: float, lr: float) -> None:
            assert epoch == (step + 4) // 5
            assert loss > 0
            assert lr > 0

        def epoch_done(self, epoch: int, row: Mapping[str, float], is_best: bool) -> None:
            assert row["epoch"] == epoch
            reported.append(is_best)

        def run_done(self) -> None:
            reported.append(True)

    result = make_trainer(folder, task=Scripted(Images()), epochs=4, reporter=Note()).fit()
    assert (result.best_epoch, result.best, result.last) == (3, {"accuracy": 0.5}, {"accuracy": 0.2})
    assert reported == [True, True, True, False, True]


def test_best_weights_are_those_that_were_validated(folder: RunFolder) -> None:
    data = Images()
    result = make_trainer(folder, data=data, ema={"decay": 0.7}, epochs=4).fit()
    model = DropPathNet()
    model.load_state_dict(result.best_weights)
    assert Classify(data).evaluate(model.eval(), torch.device("cpu")) == result.best


def test_tied_and_frozen_parameters_are_dropped_in(folder: RunFolder) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
            self.second.weight = self.first.weight
            self.head = nn.Linear(3, 4)
            self.head.bias.requires_grad_(False)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.second(self.first(images)).mean((2, 3)))

    model = Tied()
    bias = model.head.bias.clone()
    trainer = make_trainer(folder, model=model, ema={"decay": 0.5}, epochs=2)
    result = trainer.fit()
    assert torch.equal(model.head.bias, bias)
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == 4
    assert result.best_weights["second.weight"] is result.best_weights["first.weight"]
    model.load_state_dict(result.best_weights)


def test_compiled_runs_keep_the_names(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        calls.append(1)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    model = plain_net()
    names = list(model.state_dict())
    result = make_trainer(folder, model=model, compile=True, epochs=1).fit()
    assert calls
    assert list(model.state_dict()) == list(result.best_weights) == names


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": True}, {"clip_norm": 0.1}])
def test_precision_layout_and_clipping_learn_and_leave_nothing_behind(folder: RunFolder, changes: Any) -> None:
    model = DropPathNet(drop=0.0)
    before = set(vars(model))
    result = make_trainer(folder, model=model, epochs=6, **changes).fit()
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert set(vars(model)) == before
    assert not model.training
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    if changes.get("channels_last"):
        assert model.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_precision_may_differ_from_run_to_run(tmp_path: Path) -> None:
    for number, precision in enumerate(("no", "bf16", "no")):
        trainer = make_trainer(RunFolder.create(tmp_path / str(number), False, 0), precision=precision)
        assert trainer.accelerator.mixed_precision == precision


def test_hooks_on_the_optimizer_see_every_update(folder: RunFolder) -> None:
    trainer = make_trainer(folder, epochs=1)
    steps: list[int] = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    assert trainer.fit().steps == len(steps) == 5


def test_batches_of_a_generator_that_draws_seeds_are_closed(folder: RunFolder) -> None:
    closed: list[int] = []

    class Closing(Images):
        def epoch(self, epoch: int, start: int = 0) -> Any:
            try:
                yield from super().epoch(epoch, start)
                yield Batch(self.images, self.labels)
            finally:
                closed.append(epoch)

    make_trainer(folder, data=Closing(), epochs=2).fit()
    assert closed == [0, 1]


def test_tensorboard_events_hold_the_curves(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = make_trainer(folder, tensorboard=True, epochs=2).fit()
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6, 8, 10]
    assert [event.value for event in events.Scalars("epoch/accuracy")] == pytest.approx(
        [row["accuracy"] for row in result.history]
    )


def test_weights_and_biases_goes_on_under_one_name(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    logged: list[int] = []
    run = types.SimpleNamespace(log=lambda scalars, step: logged.append(step), finish=lambda: logged.append(-1))
    module: Any = types.ModuleType("wandb")
    module.init = lambda **given: (started.append(given["id"]), run)[1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    make_trainer(folder, wandb=True, epochs=1, log_every_steps=5).fit()
    make_trainer(folder, wandb=True, epochs=2, log_every_steps=5).fit(resume=True)
    assert logged == [5, 5, -1, 10, 10, -1]
    assert len(set(started)) == 1


def test_weights_and_biases_that_is_not_installed_is_named(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"run pip install 'widefield\[wandb\]'"):
        make_trainer(folder, wandb=True).fit()


def test_the_default_reporter_logs(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "widefield.engine.reporter"):
        make_trainer(folder, epochs=1).fit()
    messages = [record.getMessage() for record in caplog.records]
    assert "training for 1 epochs of 5 steps, from step 1" in messages
    assert any(message.startswith("epoch 1, step 2: loss ") for message in messages)
    assert any(message.endswith("(best so far)") for message in messages)
