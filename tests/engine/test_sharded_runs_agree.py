from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine.small_run import BlockNet, make_trainer, weights_bytes
from safetensors.torch import load_file
from torch import nn

from widefield._core.errors import InputError
from widefield.engine import RunFolder, read_checkpoint
from widefield.engine.sharding import check_units

if TYPE_CHECKING:
    from pathlib import Path

CHANGES: dict[str, Any] = {
    "epochs": 4,
    "accumulate_steps": 2,
    "clip_norm": 0.5,
    "ema": {"decay": 0.8},
    "log_every_steps": 1,
    "schedule": {"name": "constant"},
    "skip_nonfinite": 2,
}
"""12 steps of AdamW."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, run_small: Any) -> Path:
    path = tmp_path_factory.mktemp("sharded")

    def order(name: str, resume: bool = False, sharding: str = "fsdp", **more: Any) -> dict[str, Any]:
        changes = {**CHANGES, "sharding": sharding, **more.pop("changes", {})}
        return {"folder": str(path / name), "resume": resume, "ranks": 2, "blocks": True, "changes": changes, **more}

    done = run_small(
        [
            order("replicated", sharding="none"),
            order("sharded"),
            order("cut", changes={"checkpoint_every_steps": 2}, kill_at_loss=[15]),
            order("cut", resume=True),
            order("changed", changes={"epochs": 2}),
            order("changed", resume=True, sharding="none"),
        ]
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, 0, -9, 0, 0, 0], done.stderr
    return path


def curve(path: Path) -> list[float]:
    with (path / "steps.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["sharded", "changed"])
def test_losses_and_weights_are_those_of_replicated_parameters(runs: Path, name: str) -> None:
    expected, got = curve(runs / "replicated"), curve(runs / name)
    assert len(expected) == len(got) == 12
    assert max(abs(a - b) for a, b in zip(expected, got, strict=True)) < 1e-5
    assert got[-1] < got[0]
    for file in ("model.safetensors", "best.safetensors"):
        weights, others = load_file(runs / "replicated" / file), load_file(runs / name / file)
        for key, tensor in weights.items():
            torch.testing.assert_close(
                tensor, others[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key} {text}"
            )


def test_checkpoints_hold_the_same_tensors(runs: Path) -> None:
    (tensors, state), (others, other_state) = (
        read_checkpoint(runs / name / "checkpoints" / "step_00000012") for name in ("replicated", "sharded")
    )
    assert {name: tensor.shape for name, tensor in tensors.items()} == {n: t.shape for n, t in others.items()}
    assert state["optimizer"]["groups"] == other_state["optimizer"]["groups"]
    for name, tensor in tensors.items():
        if not name.startswith("rank"):
            torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-5)


def test_a_sharded_run_that_was_killed_ends_as_if_it_had_not_been(runs: Path) -> None:
    for file in ("model.safetensors", "best.safetensors", "checkpoints/step_00000012/tensors.safetensors"):
        one, other = load_file(runs / "sharded" / file), load_file(runs / "cut" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file
    assert (runs / "sharded" / "steps.csv").read_text() == (runs / "cut" / "steps.csv").read_text()


def test_weights_that_blocks_share_are_refused() -> None:
    model = BlockNet()
    model.other = nn.Linear(6, 4)
    model.other.weight = model.head.weight
    check_units(model)
    blocks = model.stages[0].blocks
    blocks[2][0].weight = blocks[0][0].weight
    text = r"but got one that is both stages\.0\.blocks\.0\.0\.weight and stages\.0\.blocks\.2\.0\.weight: use"
    with pytest.raises(InputError, match=text):
        check_units(model)


def test_one_process_is_not_sharded(tmp_path: Path) -> None:
    finished = []
    for sharding in ("none", "fsdp"):
        trainer = make_trainer(RunFolder.create(tmp_path / sharding, False, 0), sharding=sharding, epochs=1)
        trainer.fit()
        finished.append(weights_bytes(trainer))
    assert finished[0] == finished[1]
