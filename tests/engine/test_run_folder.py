from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from widefield._core.errors import InputError
from widefield.engine import RunFolder

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_folder_holds_the_config_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "run", False, 1000, "lr: 1\n")
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]
    assert folder.config.read_text() == "lr: 1\n"
    assert RunFolder.create(tmp_path / "a" / "run", True, 1000, "lr: 1\n") == folder


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"Expected a run folder that is new or empty, but got .*something in it"):
        RunFolder.create(tmp_path, False, 0)
    with pytest.raises(InputError, match="Expected a run folder that is new or empty"):
        RunFolder.create(tmp_path / "notes.txt", False, 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_resuming_needs_a_run_of_the_same_config(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected a folder with a run to resume, but got .*neither config.yaml"):
        RunFolder.create(tmp_path / "none", True, 0)
    assert not (tmp_path / "none").exists()
    RunFolder.create(tmp_path / "run", False, 0, "lr: 1\nepochs: 2\n")
    with pytest.raises(InputError, match=r"another one \(-lr: 1; \+lr: 3\): resume with the same settings"):
        RunFolder.create(tmp_path / "run", True, 0, "lr: 3\nepochs: 2\n")


def test_too_small_a_disk_is_refused_and_nothing_left_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected \d+ MB free for the run, but got \d+ MB on the disk"):
        RunFolder.create(tmp_path / "a" / "b", False, shutil.disk_usage(tmp_path).total * 2)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_and_nothing_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Expected a folder that can be written, but got .*Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", False, 0)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"a folder that can be written, but got .*\(Permission denied\): choose"):
        RunFolder.create(tmp_path / "a" / "b", False, 0, "lr: 1\n")
    assert not (tmp_path / "a").exists()


def test_other_ranks_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    folder = RunFolder.create(tmp_path / "run", False, 0, "lr: 1\n")
    assert folder.path == tmp_path / "run"
    assert not folder.path.exists()


def test_writes_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run", False, 0)
    assert folder.write_json("summary.json", {"top1": 0.1 + 0.2}) == folder.summary
    folder.write_text("summary.json", json.dumps({"top1": 0.5}))

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        folder.write_text("summary.json", "half")
    assert json.loads(folder.summary.read_text()) == {"top1": 0.5}


def test_paths_lie_in_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    names = {
        folder.config: "config.yaml",
        folder.metrics: "metrics.csv",
        folder.steps: "steps.csv",
        folder.summary: "summary.json",
        folder.model: "model.safetensors",
        folder.merged: "merged.safetensors",
        folder.checkpoints: "checkpoints",
        folder.tensorboard: "tensorboard",
        folder.figure("curves.png"): "curves.png",
    }
    assert all(path == tmp_path / name for path, name in names.items())
