"""A run that was cut short is taken up with what it was begun with, or not at all."""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tasks.photo_run import CutAt, PowerCut, photo_run, write_photo, write_photos

from widefield._core.errors import InputError
from widefield.engine import RunFolder, read_checkpoint
from widefield.engine.checkpointing import latest_state
from widefield.tasks.classification import RunConfig, read_config, train
from widefield.tasks.classification.origin import CHANGEABLE, changes


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a whole run on them, and one that was cut after its sixth update of eight."""
    path = tmp_path_factory.mktemp("begun")
    config = photo_run(write_photos(path / "photos"))
    train(config, path / "whole")
    with pytest.raises(PowerCut):
        train(config, path / "cut", reporter=CutAt(6))
    return path


@pytest.fixture
def cut(begun: Path, tmp_path: Path) -> tuple[Path, RunConfig]:
    """A copy of the run that was cut, and its config with a copy of the photos."""
    shutil.copytree(begun / "cut", tmp_path / "cut")
    shutil.copytree(begun / "photos", tmp_path / "photos")
    return tmp_path / "cut", photo_run(tmp_path / "photos")


def tree(path: Path) -> dict[Path, tuple[int, int]]:
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in path.rglob("*") if file.is_file()}


def same_weights(one: Path, other: Path) -> bool:
    files = [load_file(path / name) for name in ("model.safetensors", "merged.safetensors") for path in (one, other)]
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in (files[:2], files[2:])
    )


def refused(config: RunConfig, run: Path) -> str:
    before = tree(run)
    with pytest.raises(InputError) as caught:
        train(config, run, resume=True)
    assert tree(run) == before
    return str(caught.value)


def swap(root: Path) -> None:
    (root / "ant").rename(root / "other")
    (root / "bee").rename(root / "ant")
    (root / "other").rename(root / "bee")


def move(one: str, other: str) -> Callable[[Path], object]:
    return lambda root: (root / one).rename(root / other)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (move("ant", "wasp"), ["got the class 'wasp' new and the class 'ant' gone: restore"]),
        (swap, ["train images with other contents under the same names"]),
        (
            lambda root: shutil.copytree(root / "bee", root / "cow"),
            ["the class 'cow' new", "24 train images in place of 16", "6 validation images in place of 4"],
        ),
        (
            lambda root: write_photo(root / "ant" / "new.png", 7),
            ["got 17 train images in place of 16; the image 'ant/new.png' new: restore"],
        ),
        (
            lambda root: [write_photo(root / "ant" / f"new{i}.png", i) for i in range(9)],
            ["the images 'ant/new0.png', 'ant/new1.png', 'ant/new2.png' and 6 more new: restore"],
        ),
        (
            lambda root: (root / "bee" / "4.png").unlink(),
            ["15 train images in place of 16; the image 'bee/4.png' gone"],
        ),
        (move("bee/4.png", "bee/renamed.png"), ["got the image 'bee/renamed.png' new and the image 'bee/4.png' gone:"]),
        (move("bee/4.png", "ant/moved.png"), ["the image 'ant/moved.png' new and the image 'bee/4.png' gone:"]),
    ],
)
def test_other_images_are_refused_and_named(
    change: Callable[[Path], Any], parts: list[str], cut: tuple[Path, RunConfig]
) -> None:
    run, config = cut
    change(Path(config.data.root))
    sentence = refused(config, run)
    assert sentence.startswith(f"Expected the images that the run in {run} was begun with, but got ")
    assert sentence.endswith(": restore them, or start a new run in another folder.")
    for part in parts:
        assert part in sentence


def test_a_test_part_that_appears_is_refused(begun: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(begun / "photos", root / "train")
    write_photos(root / "val", count=2)
    with pytest.raises(PowerCut):
        train(photo_run(root), tmp_path / "run", reporter=CutAt(2))
    write_photos(root / "test", count=3)
    sentence = refused(photo_run(root), tmp_path / "run")
    assert "6 test images in place of 0; the images 'test/ant/0.png', 'test/ant/1.png'" in sentence


def test_without_the_list_of_images_classes_and_counts_are_told(cut: tuple[Path, RunConfig]) -> None:
    run, config = cut
    (run / "checkpoints" / "images.csv.gz").write_bytes(b"damaged")
    move("bee/4.png", "bee/renamed.png")(Path(config.data.root))
    assert "other train images, or another order of them: restore" in refused(config, run)
    write_photo(Path(config.data.root) / "ant" / "new.png", 7)
    assert "17 train images in place of 16" in refused(config, run)


def with_changes(config: RunConfig, part: str, **values: Any) -> RunConfig:
    return replace(config, **{part: replace(getattr(config, part), **values)})


@pytest.mark.parametrize(
    ("part", "values", "told"),
    [
        ("data", {"batch_size": 2}, "data.batch_size 2 in place of 4"),
        ("data", {"validation_fraction": 0.4}, "data.validation_fraction 0.4 in place of 0.2"),
        ("data", {"split_seed": 1}, "data.split_seed 1 in place of 0"),
        ("trainer", {"seed": 3}, "trainer.seed 3 in place of 0"),
        ("trainer", {"epochs": 1}, "trainer.epochs 1 in place of 2"),
        ("optimizer", {"name": "sgd"}, "optimizer.name sgd in place of adamw"),
        ("ema", {"decay": 0.9}, "ema.decay 0.9 in place of None"),
        ("augmentation", {"mixup": 0.5, "cutmix": 1.0}, "augmentation.mixup 0.5 in place of 0.0; augmentation.cutmix"),
    ],
)
def test_other_settings_are_refused_and_named(
    part: str, values: dict[str, Any], told: str, cut: tuple[Path, RunConfig]
) -> None:
    run, config = cut
    edited = with_changes(config, part, **values)
    # As a person who edits the file would do.
    (run / "config.yaml").write_text(edited.to_yaml(), encoding="utf-8")
    sentence = refused(edited, run)
    assert sentence.startswith(f"Expected the settings that the run in {run} was begun with, but got {told}")
    assert "(only data.root, data.workers, " in sentence


def test_what_may_change_leaves_the_weights_as_they_would_have_been(cut: tuple[Path, RunConfig], begun: Path) -> None:
    run, config = cut
    config = with_changes(config, "data", workers=1, on_error="skip")
    config = with_changes(
        config,
        "trainer",
        device="auto" if not torch.accelerator.is_available() else "cpu",
        checkpoint_every_steps=None,
        keep_checkpoints=1,
        log_every_steps=3,
        skip_nonfinite=5,
        monitor_activations=True,
        monitored_modules=("layer*",),
        activation_limit=1e3,
    )
    known = latest_state(run / "checkpoints")
    assert known is not None
    assert set(changes(photo_run(begun / "photos"), config)) <= set(CHANGEABLE)
    train(config, run, resume=True)
    assert same_weights(run, begun / "whole")
    assert read_config(run / "config.yaml") == config
    # The next resume compares with what has been accepted.
    state = read_checkpoint(run / "checkpoints" / "step_00000008")[1]
    assert state["origin"]["config"]["data"]["workers"] == 1
    assert not (run / ".lock").exists()


def test_every_setting_that_may_change_is_one() -> None:
    plain = photo_run(Path("photos"))
    for name in CHANGEABLE:
        part, _, field = name.partition(".")
        assert hasattr(getattr(plain, part), field)


def test_a_run_goes_on_to_more_epochs_and_says_what_that_means(
    cut: tuple[Path, RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    run, config = cut
    result = train(with_changes(config, "trainer", epochs=3), run, resume=True)
    assert result is not None
    assert result[0].epochs == 3
    assert len((run / "metrics.csv").read_text().splitlines()) == 4
    assert "goes on to 3 epochs in place of 2: from here on, learning rate and masks follow" in caplog.text


def test_another_number_of_threads_is_told(
    cut: tuple[Path, RunConfig], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = cut
    state = latest_state(run / "checkpoints")
    assert state is not None
    known = state["origin"]["environment"]
    assert known["threads"] == torch.get_num_threads()
    assert (known["torch"], known["device"], known["processes"]) == (str(torch.__version__), "cpu", 1)
    with caplog.at_level(logging.WARNING), pytest.raises(PowerCut):
        train(config, run, resume=True, reporter=CutAt(7))
    assert "goes on with" not in caplog.text
    monkeypatch.setattr(torch, "get_num_threads", lambda: known["threads"] + 3)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    train(config, run, resume=True)
    assert (
        f"goes on with threads {known['threads'] + 3} in place of {known['threads']}, "
        f"CPU instructions ABACUS in place of {known['CPU instructions']}: its results may differ"
    ) in caplog.text


def test_checkpoints_of_an_earlier_version_are_taken_up_with_a_warning(
    cut: tuple[Path, RunConfig], caplog: pytest.LogCaptureFixture, begun: Path
) -> None:
    run, config = cut
    (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    for file in run.glob("checkpoints/step_*/state.json"):
        content = json.loads(file.read_text())
        del content["state"]["origin"]
        content["checksums"]["state.json"] = zlib.crc32(json.dumps(content["state"]).encode())
        file.write_text(json.dumps(content))
    assert "optimizer.lr 0.1 in place of 0.001" in refused(with_changes(config, "optimizer", lr=0.1), run)
    train(config, run, resume=True)
    assert "are of an earlier version and do not say which images and settings they come from" in caplog.text
    assert same_weights(run, begun / "whole")


def test_a_run_without_a_checkpoint_begins_anew_with_its_settings(begun: Path, tmp_path: Path) -> None:
    config = photo_run(begun / "photos")
    RunFolder.create(tmp_path / "run", False, 0, config.to_yaml())
    assert "optimizer.lr 0.1 in place of 0.001" in refused(with_changes(config, "optimizer", lr=0.1), tmp_path / "run")
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (begun / "whole" / "model.safetensors").read_bytes()


def test_a_second_process_on_a_run_is_refused_and_the_first_goes_on(begun: Path, tmp_path: Path) -> None:
    config, run = photo_run(begun / "photos"), tmp_path / "run"
    sentences: list[str] = []

    class Meddling(CutAt):
        def step_done(self, epoch: int, step: int, loss: float, lr: float) -> None:
            for resume in (True, False):
                with pytest.raises(InputError) as caught:
                    train(config, run, resume=resume)
                sentences.append(str(caught.value))

    train(config, run, reporter=Meddling(0))
    assert all("no other process is writing" in sentence for sentence in sentences[::2])
    assert all("new or empty" in sentence for sentence in sentences[1::2])
    assert len(sentences) == 16
    assert same_weights(run, begun / "whole")
    assert (run / "steps.csv").read_text() == (begun / "whole" / "steps.csv").read_text()
