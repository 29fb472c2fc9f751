from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tasks.photo_run import CutAt, PowerCut, photo_run, write_photos

from widefield._core.errors import InputError
from widefield.tasks.classification import train

WEIGHTS = 1_500_000
"""Bytes of the network, about."""


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many bytes a disk says are free."""
    real = shutil.disk_usage

    def be(free_bytes: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=free_bytes))

    return be


def test_what_the_folder_holds_is_not_asked_for_again(tmp_path: Path, free: Any) -> None:
    config, run = photo_run(write_photos(tmp_path / "photos"), keep_checkpoints=10), tmp_path / "run"
    free(60_000_000)
    with pytest.raises(InputError, match=r"Expected 7\d MB free for the run, but got 60 MB"):
        train(config, run)
    assert not run.exists()
    free(80_000_000)
    with pytest.raises(PowerCut):
        train(config, run, reporter=CutAt(6))
    held = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    assert held > 5 * 3 * WEIGHTS
    # What is left to write, against what was to write at the beginning.
    free(20_000_000)
    with pytest.raises(InputError, match=r"Expected (4\d|5\d) MB free for the run, but got 20 MB"):
        train(config, run, resume=True)
    free(75_000_000 - held + 5_000_000)
    assert train(config, run, resume=True) is not None


@pytest.mark.parametrize("has_results", [False, True])
def test_a_run_whose_epochs_are_done_needs_room_for_its_results_alone(
    tmp_path: Path, free: Any, has_results: bool
) -> None:
    config, run = photo_run(write_photos(tmp_path / "photos", count=5), epochs=1), tmp_path / "run"
    train(config, run)
    if not has_results:
        for name in ("model.safetensors", "merged.safetensors", "summary.json"):
            (run / name).unlink()
    free(1_500_000)
    with pytest.raises(InputError, match=r"Expected \d MB free for the run, but got 2 MB"):
        train(config, run, resume=True)
    free(6_000_000 if not has_results else 4_500_000)
    assert train(config, run, resume=True) is not None
    assert (run / "summary.json").is_file()
