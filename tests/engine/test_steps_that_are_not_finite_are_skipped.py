from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine.small_run import Batch, Classify, DropPathNet, HalfMasked, Images, make_trainer, weights_bytes
from torch import Tensor, nn

from widefield._core.errors import RunError
from widefield.engine import RunFolder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", False, 0)


def spoiled(*losses: int) -> Classify:
    task = Classify(Images())
    task.at_loss = dict.fromkeys(losses, lambda loss: loss * float("nan"))
    return task


def steps(folder: RunFolder) -> list[dict[str, str]]:
    with folder.steps.open(newline="") as file:
        return list(csv.DictReader(file))


def states_after_each_step(folder: RunFolder, task: Classify, **changes: Any) -> list[dict[str, Tensor]]:
    """Return weights, buffers, average and moments before each step, and at the end."""
    seen: list[dict[str, Tensor]] = []

    class Look(HalfMasked):
        def started(self, context: Any) -> None:
            self.context = context

        def after_step(self, step: int) -> None:
            self.told.append(f"step {step}")

        def metrics(self) -> dict[str, float]:
            return {}

        def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
            model, ema = self.context.model.state_dict(), self.context.ema.state_dict()
            moments = {
                f"moment {index}": state["exp_avg"] for index, state in enumerate(self.context.optimizer.state.values())
            }
            seen.append({name: tensor.clone() for name, tensor in {**model, **moments}.items()})
            seen[-1] |= {f"ema {name}": tensor.clone() for name, tensor in ema.items()}
            return {}, {}

    look = Look()
    make_trainer(
        folder, task=task, extensions=[look], checkpoint_every_steps=1, ema={"decay": 0.9}, log_every_steps=1, **changes
    ).fit()
    seen.append({"told": torch.tensor([int(text.split()[1]) for text in look.told if text.startswith("step")])})
    return seen


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_nothing_moves_but_the_count_and_the_learning_rate(folder: RunFolder, clip_norm: float | None) -> None:
    *seen, told = states_after_each_step(folder, spoiled(3), skip_nonfinite=2, epochs=1, clip_norm=clip_norm)
    assert told["told"].tolist() == [1, 2, 4, 5]
    before, after, later = seen[1:4]
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(after["stem.weight"], later["stem.weight"])
    rows = steps(folder)
    assert [row["skipped"] for row in rows] == ["0", "0", "1", "0", "0"]
    assert [math.isnan(float(row["loss"])) for row in rows] == [False, False, True, False, False]
    assert float(rows[3]["lr"]) > float(rows[2]["lr"]) > float(rows[1]["lr"])


def test_a_batch_that_poisons_the_statistics_of_batch_norm_is_forgotten(folder: RunFolder) -> None:
    class OneBad(Images):
        def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
            for index, batch in enumerate(super().epoch(epoch, start), start):
                yield Batch(batch.images * float("inf"), batch.labels) if index == 3 else batch

    result = make_trainer(folder, loader=OneBad(), skip_nonfinite=2, accumulate_steps=2, epochs=2).fit()
    assert all(tensor.isfinite().all() for tensor in result.best_weights.values())
    assert [row["skipped"] for row in result.history] == [1, 1]
    assert all(math.isfinite(row["train_loss"]) for row in result.history)


def test_a_gradient_that_is_not_finite_counts_though_the_loss_is(folder: RunFolder) -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = DropPathNet()
            self.scale = nn.Parameter(torch.zeros(1))
            self.calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += self.training
            y = self.net(images)
            return y + self.scale.sqrt() if self.calls == 2 else y + self.scale

    result = make_trainer(folder, model=Steep(), skip_nonfinite=1 + 1, epochs=1).fit()
    assert result.history[0]["skipped"] == 1
    assert all(tensor.isfinite().all() for tensor in result.best_weights.values())


def test_too_many_in_a_row_end_the_run_and_the_count_outlives_a_resume(folder: RunFolder) -> None:
    task = spoiled(2, 4, 5)
    task.at_loss[6] = lambda loss: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(folder, task=task, skip_nonfinite=3, checkpoint_every_steps=1).fit()
    text = (
        r"^The loss or its gradient was not finite in 3 steps in a row, the last of them step 6 with learning rate "
        r"0\.\d+ \(loss nan, norm of the gradient nan\): lower optimizer\.lr"
    )
    with pytest.raises(RunError, match=text):
        make_trainer(folder, task=spoiled(1), skip_nonfinite=3, checkpoint_every_steps=1).fit(resume=True)
    result = make_trainer(folder, skip_nonfinite=3).fit(resume=True)
    assert [row["skipped"] for row in result.history] == [3, 0, 0]


def test_one_in_a_row_stops_at_the_first(folder: RunFolder) -> None:
    with pytest.raises(RunError, match="The loss or its gradient was not finite in 1 step, the last of them step 2"):
        make_trainer(folder, task=spoiled(2), skip_nonfinite=1).fit()


def test_without_such_steps_it_is_the_run_without_the_setting(tmp_path: Path) -> None:
    runs = []
    for name, changes in (("off", {}), ("on", {"skip_nonfinite": 3})):
        trainer = make_trainer(RunFolder.create(tmp_path / name, False, 0), ema={"decay": 0.9}, **changes)
        runs.append((trainer.fit(), weights_bytes(trainer)))
    assert runs[0][1] == runs[1][1]
    assert "skipped" not in runs[0][0].history[0]
    assert [row["skipped"] for row in runs[1][0].history] == [0, 0, 0]


def test_the_curve_keeps_its_columns_when_the_setting_changes(folder: RunFolder) -> None:
    make_trainer(folder, epochs=1, log_every_steps=5).fit()
    make_trainer(folder, epochs=2, log_every_steps=5, skip_nonfinite=2).fit(resume=True)
    assert [(row["step"], row["skipped"]) for row in steps(folder)] == [("5", ""), ("10", "0")]
    make_trainer(folder, epochs=3, log_every_steps=5).fit(resume=True)
    assert [list(row) for row in steps(folder)] == [["step", "loss", "lr"]] * 3
