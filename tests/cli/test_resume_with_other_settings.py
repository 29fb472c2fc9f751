"""``widefield train --resume`` on a folder whose settings were edited, and with options of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widefield.cli.main import main
from widefield.tasks.classification import read_config

TINY = (
    "--model.name", "test_resnet", "--data.image-size", 32, "--data.batch-size", 4, "--data.workers", 0,
    "--trainer.epochs", 1, "--trainer.tensorboard", False, "--schedule.warmup-epochs", 0,
    "--augmentation.auto-augment", "None",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the photos beside it."""
    path = tmp_path_factory.mktemp("tiny")
    write_photos(path / "photos")
    words = ["train", "image_folder", "--data.root", path / "photos", *TINY, "--output", path / "run"]
    assert main([*map(str, words)]) == 0
    return path / "run"


def write_photos(root: Path, count: int = 6) -> None:
    from PIL import Image

    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
        (root / name).mkdir(parents=True)
        for index in range(count):
            tint = tuple(min(255, channel + 5 * index) for channel in colour)
            Image.new("RGB", (40 + index, 36), tint).save(root / name / f"{index}.png")


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (replaced("batch_size: 4", "batch_size: 2"), "data.batch_size 2 in place of 4"),
        (replaced("seed: 0\n", "seed: 5\n"), "data.split_seed 5 in place of 0"),
        (replaced("name: adamw", "name: sgd"), "optimizer.name sgd in place of adamw"),
        (replaced("epochs: 1\n", "epochs: 0.5\n"), ""),
        (replaced("sparsity: null", "sparsity:\n  sparsity: 0.5"), "sparsity {'sparsity': 0.5"),
        (replaced("teacher: null", "teacher: nowhere"), ""),
        (replaced("precision: 'no'", "precision: bf16"), "trainer.precision bf16 in place of no"),
    ],
)
def test_an_edited_config_is_refused_in_one_sentence(edit: Any, told: str, run: Path, widefield: Any) -> None:
    config = run / "config.yaml"
    config.write_text(edit(config.read_text()))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    outcome = widefield("train", "--resume", run)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: Expected ")
    assert len(outcome.err.strip().splitlines()) == 1
    assert told in outcome.err
    if told:
        assert "a larger trainer.epochs can change in a run" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_options_that_no_weight_depends_on_are_taken_and_kept(run: Path, widefield: Any, tiny_run: Path) -> None:
    outcome = widefield("train", "--resume", run, "--data.workers", 1, "--trainer.log-every-steps", 3)
    assert outcome.code == 0, outcome.err
    config = read_config(run / "config.yaml")
    assert (config.data.workers, config.trainer.log_every_steps) == (1, 3)
    summaries = [json.loads((path / "summary.json").read_text()) for path in (run, tiny_run)]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]
    outcome = widefield("train", "--resume", run, "--optimizer.lr", 0.5)
    assert outcome.code == 2
    assert "but got optimizer.lr 0.5 in place of " in outcome.err


def test_a_run_on_all_images_says_that_nothing_was_scored(widefield: Any, tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    words = ("train", "image_folder", "--data.root", tmp_path / "photos", *TINY, "--data.validation-fraction", 0)
    run = tmp_path / "run"
    outcome = widefield(*words, "--output", run)
    assert outcome.code == 0, outcome.err
    assert "kept the weights of the last, since no images were held back for validation" in outcome.out
    assert "no split to score: all images trained" in outcome.out
    assert outcome.out.count("not scored") == 2
    outcome = widefield("evaluate", run)
    assert outcome.code == 2
    assert "Expected a split to score, but got " in outcome.err
    assert "name one with --split, and with --root the data that have it" in outcome.err
    assert "images 8" in widefield("evaluate", run, "--split", "train").out
    write_photos(tmp_path / "more" / "test", 3)
    assert "images 6" in widefield("evaluate", run, "--split", "test", "--root", tmp_path / "more").out
    outcome = widefield("evaluate", run, "--split", "validation")
    assert outcome.code == 2
    assert "none drawn from its training images (validation_fraction 0)" in outcome.err
