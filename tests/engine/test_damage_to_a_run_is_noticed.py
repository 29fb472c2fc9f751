from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine.small_run import Classify, Images, make_trainer, weights_bytes
from safetensors.torch import load_file, save_file

from widefield._core.errors import InputError, RunError
from widefield.engine import RunFolder, latest_checkpoint, read_checkpoint, save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

CHANGES: dict[str, Any] = {"epochs": 3, "ema": {"decay": 0.9}, "checkpoint_every_steps": 2, "log_every_steps": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A run of 15 steps, and its weights."""
    path = tmp_path_factory.mktemp("finished") / "run"
    trainer = make_trainer(RunFolder.create(path, False, 0), **CHANGES)
    trainer.fit()
    return path, weights_bytes(trainer)


@pytest.fixture
def run(finished: tuple[Path, dict[str, bytes]], tmp_path: Path) -> RunFolder:
    shutil.copytree(finished[0], tmp_path / "run")
    return RunFolder(tmp_path / "run")


def resume(run: RunFolder, **changes: Any) -> dict[str, bytes]:
    trainer = make_trainer(run, **{**CHANGES, **changes})
    trainer.fit(resume=True)
    return weights_bytes(trainer)


def best(run: RunFolder) -> Path:
    return best_of(run, read_checkpoint(run.checkpoints / "step_00000015")[1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 40):
        content[place] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [flip, truncate, folder, pipe])
def test_best_weights_are_verified_before_anything_is_trained(run: RunFolder, damage: Callable[[Path], None]) -> None:
    path = best(run)
    damage(path)
    task = Classify(Images())
    with pytest.raises(InputError) as caught:
        resume(run, task=task, epochs=4)
    assert str(caught.value) == (
        f"Expected the best weights of the run, but got a truncated or damaged file {path}: "
        "restore it from a copy, or run again."
    )
    assert task.losses == 0


@pytest.mark.parametrize("replace", [folder, pipe, lambda path: path.write_text("[" * 100_000)])
def test_a_state_that_is_none_is_passed_over(
    run: RunFolder, finished: tuple[Path, dict[str, bytes]], replace: Callable[[Path], None]
) -> None:
    replace(run.checkpoints / "step_00000015" / "state.json")
    assert resume(run) == finished[1]
    assert (run.checkpoints / "damaged_step_00000015").is_dir()


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nothing")])
def test_a_stray_entry_with_the_name_of_a_checkpoint_is_set_aside(
    run: RunFolder, finished: tuple[Path, dict[str, bytes]], make: Callable[[Path], None]
) -> None:
    for _ in range(2):
        make(run.checkpoints / "step_99999999")
        assert resume(run) == finished[1]
    assert os.path.lexists(run.checkpoints / "damaged_step_99999999.2")


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("nothing")])
def test_a_folder_of_checkpoints_that_is_none_is_refused(run: RunFolder, make: Callable[[Path], None]) -> None:
    shutil.rmtree(run.checkpoints)
    make(run.checkpoints)
    with pytest.raises(InputError, match=r"Expected a folder of checkpoints, but got .*checkpoints, which is none: re"):
        resume(run)


def test_checkpoints_that_cannot_be_listed_are_told(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"can be read and written, but got .*checkpoints \(Permission denied\): mend"):
        latest_checkpoint(run.checkpoints)


def test_lost_checkpoints_are_not_taken_for_a_new_run(run: RunFolder) -> None:
    curves = run.steps.read_text()
    shutil.rmtree(run.checkpoints)
    with pytest.raises(InputError, match=r"but got none, although metrics.csv holds 3 epochs: restore .*checkpoints"):
        resume(run)
    assert run.steps.read_text() == curves


def test_a_folder_in_the_place_of_a_curve_is_named(run: RunFolder) -> None:
    folder(run.metrics)
    with pytest.raises(RunError, match=r"Writing .* failed \(Is a directory\): move .*metrics.csv away and resume the"):
        resume(run)


def edited(run: RunFolder, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> Path:
    """Change the newest checkpoint and everything by which damage is known."""
    path = run.checkpoints / "step_00000015"
    tensors, state = read_checkpoint(path)
    change(tensors, state)
    shutil.rmtree(path)
    return save_checkpoint(run.checkpoints, 15, tensors, state)


VALUES: list[tuple[str, Any, str]] = [
    ("step", "15", "one without a usable 'step' in"),
    ("epoch", True, "one without a usable 'epoch' in"),
    ("batch", -1, "one without a usable 'batch' in"),
    ("history", [1, 2, 3], "one without a usable 'history' in"),
    ("history", [], "one of 3 epochs with 0 rows, the best of epoch"),
    ("best_epoch", 9, "the best of epoch 9 and step"),
    ("losses", {"interval": ["a"]}, "one without a usable 'losses' in"),
    ("optimizer", {"groups": [1], "state": {}}, "one without a usable 'optimizer' in"),
    ("extensions", {"half": None}, "one without a usable 'extensions' in"),
    ("seconds", float("nan"), "one without a usable 'seconds' in"),
    ("steps_csv", {"bytes": 1}, "one without a usable 'steps_csv' in"),
]


@pytest.mark.parametrize(("name", "value", "text"), VALUES)
def test_a_state_of_wrong_types_is_told_and_passed_over(
    run: RunFolder,
    finished: tuple[Path, dict[str, bytes]],
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: Any,
    text: str,
) -> None:
    path = edited(run, lambda _, state: state.__setitem__(name, value))
    with pytest.raises(InputError, match=text):
        read_checkpoint(path)
    assert resume(run) == finished[1]
    assert text in caplog.text


def recast(name: str, kind: torch.dtype) -> Callable[[dict[str, torch.Tensor], Any], Any]:
    return lambda tensors, _: tensors.__setitem__(name, tensors[name].to(kind))


def options(state: dict[str, Any]) -> dict[str, Any]:
    return state["optimizer"]["groups"][0]["options"]["dict"]


MOMENT = "optimizer/state.stem.weight.exp_avg"
EDITS: list[tuple[Callable[[dict[str, torch.Tensor], Any], Any], str]] = [
    (recast("model/stem.weight", torch.int8), r"stem.weight in torch.float32, but got torch.int8"),
    (recast("ema/stem.weight", torch.float64), r"stem.weight in torch.float32, but got torch.float64"),
    (recast(MOMENT, torch.int8), r"stem.weight.exp_avg of the optimizer in torch.float32 .* but got torch.int8"),
    (lambda tensors, _: tensors.__setitem__(MOMENT, torch.ones(2)), r"exp_avg of .*, but got .* of shape \(2,\)"),
    (lambda tensors, _: tensors.pop(MOMENT), r"with the tensor 'state.stem.weight.exp_avg' of the optimizer, but"),
    (lambda tensors, _: tensors.pop("model/stem.weight"), r"tensors of this model, but got a difference in stem"),
    (lambda tensors, _: tensors.pop("rank0/torch"), r"a checkpoint of this run, but got values in .* cannot be taken"),
    (lambda tensors, _: tensors.__setitem__("rank0/torch", torch.ones(3)), r"but got values in .* cannot be taken"),
    (
        lambda _, state: options(state).update(lr="high"),
        r"lr of .* of kind number, but got",
    ),
    (lambda _, state: state.update(step=14), r"a run with 5 steps of 5 batches an epoch, but got step 14 after 3"),
]


@pytest.mark.parametrize(("change", "text"), EDITS)
def test_values_that_do_not_fit_the_run_are_told(run: RunFolder, change: Any, text: str) -> None:
    edited(run, change)
    with pytest.raises(InputError, match=text):
        resume(run)


def test_checksums_that_fit_a_file_that_is_no_safetensors_are_not_enough(run: RunFolder) -> None:
    path = run.checkpoints / "step_00000015"
    (path / "tensors.safetensors").write_bytes(b"nothing")
    content = json.loads((path / "state.json").read_text())
    content["checksums"]["tensors.safetensors"] = zlib.crc32(b"nothing")
    (path / "state.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"got a file that is no safetensors file, .*tensors.safetensors"):
        resume(run)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def spoil(index: int, text: str | None) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        kept = lines(path)
        kept[index : index + 1] = [] if text is None else [text]
        path.write_text("\n".join(kept) + "\n")

    return change


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (spoil(4, "4,\x00\x01,0.1"), [4]),
        (spoil(4, "4,1.5"), [4]),
        (spoil(4, None), [4]),
        (spoil(0, None), []),
        (spoil(4, "4,9.5,0.01"), []),
        (lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()), []),
        (lambda path: os.truncate(path, 60), None),
        (Path.unlink, list(range(1, 16))),
        (pipe, list(range(1, 16))),
    ],
)
def test_damaged_rows_are_told_and_the_others_stay(
    run: RunFolder, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], lost: list[int] | None
) -> None:
    whole = lines(run.steps)
    damage(run.steps)
    damaged = run.steps.read_bytes() if run.steps.is_file() else None
    with caplog.at_level(logging.WARNING):
        resume(run)
    assert f"{run.steps} is damaged or gone: " in caplog.text
    steps = [int(line.split(",")[0]) for line in lines(run.steps)[1:]]
    assert lines(run.steps)[0] == whole[0]
    if lost is not None:
        assert steps == [step for step in range(1, 16) if step not in lost]
    assert steps == sorted(set(steps))
    if damaged is not None:
        assert (run.path / "steps.damaged.csv").read_bytes() == damaged


def test_rows_after_the_checkpoint_are_cut_without_a_word(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    whole = run.steps.read_text()
    run.steps.write_text(whole + "16,0.5,0.01\n17,0.")
    run.metrics.write_text("spoiled")
    resume(run)
    assert run.steps.read_text() == whole
    assert len(lines(run.metrics)) == 4
    assert "damaged" not in caplog.text


def test_a_run_of_the_earlier_format_is_taken_up(run: RunFolder, finished: tuple[Path, dict[str, bytes]]) -> None:
    def forget(_: Any, state: dict[str, Any]) -> None:
        del state["best_crc32"], state["steps_csv"]
        for packed in state["optimizer"]["state"].values():
            for name, part in packed["dict"].items():
                if isinstance(part, dict):
                    packed["dict"][name] = {"tensor": part["tensor"]["name"]}

    edited(run, forget)
    whole = run.steps.read_text()
    assert resume(run) == finished[1]
    assert run.steps.read_text() == whole


def test_a_name_in_best_that_is_not_ours_stays(run: RunFolder) -> None:
    (run.checkpoints / "best" / "notes").mkdir()
    tensors, state = read_checkpoint(run.checkpoints / "step_00000015")
    save_checkpoint(run.checkpoints, 16, tensors, state)
    assert (run.checkpoints / "best" / "notes").is_dir()
    assert load_file(best_of(run, state))
    save_file({"a": torch.ones(1)}, run.checkpoints / "best" / "step_00000001.safetensors")
    save_checkpoint(run.checkpoints, 17, tensors, state)
    assert not (run.checkpoints / "best" / "step_00000001.safetensors").exists()


def best_of(run: RunFolder, state: dict[str, Any]) -> Path:
    return run.checkpoints / "best" / f"step_{state['best_step']:08d}.safetensors"


@pytest.mark.parametrize(("changes", "text"), [({}, "before it"), ({"skip_nonfinite": 1}, "yet")])
def test_a_run_without_a_checkpoint_is_told_so(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    task = Classify(Images())
    task.at_loss[2] = lambda loss: loss * float("nan")
    with pytest.raises(RunError, match=rf"; there is no checkpoint {text}\.$"):
        make_trainer(RunFolder.create(tmp_path / "run", False, 0), task=task, **changes).fit()


@pytest.mark.parametrize(("changes", "text"), [({}, "checkpoint before it"), ({"skip_nonfinite": 1}, "checkpoint")])
def test_a_run_with_a_checkpoint_is_told_that_it_is_kept(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    task = Classify(Images())
    task.at_loss[7] = lambda loss: loss * float("nan")
    with pytest.raises(RunError, match=rf"; the last {text} is kept\.$"):
        make_trainer(RunFolder.create(tmp_path / "run", False, 0), task=task, **changes).fit()
