from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine.small_run import make_trainer

from widefield._core.errors import RunInterruptedError
from widefield.engine import RunFolder
from widefield.engine.checkpointing import latest_checkpoint, read_checkpoint

KEPT = {"decay": 0.9, "evaluate": False}


def run(path: Path, **changes: Any) -> Any:
    trainer = make_trainer(RunFolder.create(path, False, 0), **changes)
    return trainer, trainer.fit()


def scores(result: Any) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]


def test_an_average_that_is_not_scored_changes_nothing_of_a_run_but_its_checkpoints(tmp_path: Path) -> None:
    _, without = run(tmp_path / "without")
    trainer, kept = run(tmp_path / "kept", ema=KEPT)
    assert scores(kept) == scores(without)
    assert kept.best_epoch == without.best_epoch
    assert all(torch.equal(kept.best_weights[name], tensor) for name, tensor in without.best_weights.items())
    path = latest_checkpoint(trainer.folder.checkpoints)
    assert path is not None
    tensors, _ = read_checkpoint(path)
    average = {name.removeprefix("ema/"): tensor for name, tensor in tensors.items() if name.startswith("ema/")}
    assert set(average) == set(trainer.model.state_dict())
    assert any(not torch.equal(tensors[f"model/{name}"], tensor) for name, tensor in average.items())


def test_the_average_is_the_same_whether_it_is_scored_or_not(tmp_path: Path) -> None:
    found = []
    for name, ema in (("kept", KEPT), ("scored", {"decay": 0.9})):
        trainer, result = run(tmp_path / name, ema=ema)
        path = latest_checkpoint(trainer.folder.checkpoints)
        assert path is not None
        found.append(({k: v for k, v in read_checkpoint(path)[0].items() if k.startswith("ema/")}, scores(result)))
    (kept, its_scores), (scored, others) = found
    assert all(torch.equal(kept[name], tensor) for name, tensor in scored.items())
    assert its_scores != others


@pytest.mark.parametrize("stop", [4, 10])
def test_a_run_that_is_taken_up_keeps_its_average(tmp_path: Path, stop: int) -> None:
    whole, expected = run(tmp_path / "whole", ema=KEPT)

    class Stop:
        name, is_required = "stop", False

        def started(self, context: Any) -> None: ...

        def after_step(self, step: int) -> None:
            if step == stop:
                raise RunInterruptedError("stopped here")

        def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
            return {}, {}

        def load_state_dict(self, tensors: Any, state: Any) -> None: ...

        def metrics(self) -> dict[str, float]:
            return {}

        def closed(self) -> None: ...

    folder = RunFolder.create(tmp_path / "parts", False, 0)
    settings: dict[str, Any] = {"ema": KEPT, "checkpoint_every_steps": 1}
    with pytest.raises(RunInterruptedError):
        make_trainer(folder, extensions=[Stop()], **settings).fit()
    taken_up = make_trainer(folder, **settings)
    assert scores(taken_up.fit(resume=True)) == scores(expected)
    paths = [latest_checkpoint(trainer.folder.checkpoints) for trainer in (whole, taken_up)]
    assert None not in paths
    mine, theirs = (read_checkpoint(path)[0] for path in paths if path is not None)
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
