from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch

from widefield._core.errors import InputError
from widefield.engine import latest_checkpoint, read_checkpoint, save_checkpoint, write_weights
from widefield.engine.checkpointing import best_weights_path

if TYPE_CHECKING:
    from pathlib import Path


def save(folder: Path, step: int, **state: Any) -> Path:
    return save_checkpoint(folder, step, {"weight": torch.full((50,), float(step))}, {"step": step, **state}, keep=2)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    whole = torch.randn(4, 3, 5, 5)
    tensors = {
        "channels_last": whole.to(memory_format=torch.channels_last),
        "view": whole[1:],
        "other_view": whole[:2],
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 2),
        "half": torch.randn(3).bfloat16(),
    }
    state = {"number": 0.1 + 0.2, "nan": float("nan"), "nested": {"list": [1, None, "two"]}}
    path = save_checkpoint(tmp_path, 1234, tensors, state)
    assert path == tmp_path / "step_00001234"
    got, kept = read_checkpoint(path)
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(got[name], tensor)
    assert kept["number"] == state["number"]
    assert kept["nested"] == state["nested"]


def test_the_last_two_and_their_best_weights_stay(tmp_path: Path) -> None:
    best = 3
    for step in range(1, 8):
        if step in (3, 6):
            best = step
            write_weights(best_weights_path(tmp_path, step), {"weight": torch.ones(2)})
        save(tmp_path, step, best_step=best)
        kept = {path.stem for path in (tmp_path / "best").glob("*")} if step >= 3 else set()
        expected = {3: {3}, 4: {3}, 5: {3}, 6: {3, 6}, 7: {6}}.get(step, set())
        assert kept == {f"step_{number:08d}" for number in expected}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step_00000006", "step_00000007"]


def test_the_latest_is_by_number_and_leftovers_are_cleared(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 99999999)
    save(tmp_path, 100000000)
    (tmp_path / ".step_100000001.partial").mkdir()
    (tmp_path / ".step_100000001.partial" / "tensors.safetensors").write_bytes(b"half")
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / ".step_00000001.safetensors.partial").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == tmp_path / "step_100000000"
    assert not list(tmp_path.rglob("*.partial"))


def test_a_kill_while_a_checkpoint_is_replaced_brings_the_old_one_back(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    path.rename(tmp_path / ".step_00000005.replaced.partial")
    assert latest_checkpoint(tmp_path) == path
    save(tmp_path, 5, again=True)
    assert read_checkpoint(path)[1]["again"] is True


def truncate(path: Path) -> None:
    os.truncate(path / "tensors.safetensors", 100)


def flip(path: Path) -> None:
    file = path / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut_state(path: Path) -> None:
    os.truncate(path / "state.json", 20)


def edit_state(path: Path) -> None:
    content = json.loads((path / "state.json").read_text())
    content["state"]["step"] = 7
    (path / "state.json").write_text(json.dumps(content))


def lose_tensors(path: Path) -> None:
    (path / "tensors.safetensors").unlink()


def lose_state(path: Path) -> None:
    (path / "state.json").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, cut_state, edit_state, lose_tensors, lose_state])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer)
    with pytest.raises(InputError, match=r"got a truncated or damaged file, .*step_00000002.*: resume from an earlier"):
        read_checkpoint(newer)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(tmp_path) == older
    assert "step_00000002" in caplog.text
    assert (tmp_path / "damaged_step_00000002").is_dir()


def test_only_damaged_checkpoints_are_not_taken_for_none(tmp_path: Path) -> None:
    truncate(save(tmp_path, 1))
    truncate(save(tmp_path, 2))
    for _ in range(2):
        with pytest.raises(InputError, match=r"only damaged ones .the newest is step_00000002."):
            latest_checkpoint(tmp_path)


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weight = torch.randn(3)
    write_weights(tmp_path / "deep" / "weights.safetensors", {"a": weight, "b": weight, "c": torch.ones(1)})
    assert load_file(tmp_path / "deep" / "weights.safetensors").keys() == {"a", "c"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["weights.safetensors"]


def test_a_failed_write_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "weights.safetensors"
    write_weights(path, {"a": torch.ones(2)})

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_weights(path, {"a": torch.zeros(2)})
    assert torch.equal(load_file(path)["a"], torch.ones(2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.safetensors"]
