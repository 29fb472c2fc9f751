from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from widefield.tasks.classification import load_classifier, read_config

EXPECTED = {
    "checkpoints",
    "config.yaml",
    "confusion_matrix.png",
    "curves.png",
    "merge.json",
    "merged.safetensors",
    "metrics.csv",
    "model.safetensors",
    "steps.csv",
    "summary.json",
}


def summary_of(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


def test_everything_that_was_promised_is_there(finished_run: Path) -> None:
    assert {entry.name for entry in finished_run.iterdir()} == EXPECTED
    for name in ("curves.png", "confusion_matrix.png"):
        with Image.open(finished_run / name) as figure:
            assert min(figure.size) > 300
    with (finished_run / "metrics.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1


def test_the_summary_agrees_with_the_certificate_and_the_files(finished_run: Path) -> None:
    summary = summary_of(finished_run)
    certificate = json.loads((finished_run / "merge.json").read_text())
    assert summary["merge_relative_error"] == certificate["relative_error"] < 1e-5
    assert summary["merged_prediction_differences"] == 0
    assert summary["top1"] == summary["merged_top1"]
    assert (summary["split"], summary["images"]) == ("test", 359)
    for form, key in (("branched", "parameters"), ("merged", "merged_parameters")):
        model, card = load_classifier(finished_run, form)
        assert card.form == form
        assert sum(parameter.numel() for parameter in model.parameters()) == summary[key]


def test_evaluate_gives_the_figure_of_the_summary_to_the_last_digit(finished_run: Path, widefield) -> None:
    summary = summary_of(finished_run)
    for form, key in (("branched", "top1"), ("merged", "merged_top1")):
        outcome = widefield("evaluate", finished_run, "--form", form)
        assert outcome.code == 0
        assert f"top-1  {summary[key]} %" in outcome.out
    outcome = widefield("evaluate", finished_run / "model.safetensors", "--split", "validation")
    assert f"top-1  {summary['validation_top1']} %" in outcome.out


def test_the_config_beside_the_run_gives_the_same_run_again(finished_run: Path, widefield, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert widefield("train", "--config", finished_run / "config.yaml", "--output", again).code == 0
    assert read_config(again / "config.yaml") == read_config(finished_run / "config.yaml")
    volatile = {"seconds"}
    first, second = ({k: v for k, v in summary_of(path).items() if k not in volatile} for path in (finished_run, again))
    assert first == second
    assert (again / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()


def test_a_finished_run_is_resumed_to_the_same_result(finished_run: Path, widefield) -> None:
    before = summary_of(finished_run)
    weights = (finished_run / "model.safetensors").read_bytes()
    assert widefield("train", "--resume", finished_run).code == 0
    after = summary_of(finished_run)
    assert after.pop("seconds") >= 0
    before.pop("seconds")
    assert after == before
    assert (finished_run / "model.safetensors").read_bytes() == weights


def test_a_folder_of_photos_trains_and_predicts(photos: Path, widefield, tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ("--data.image-size", 32, "--data.batch-size", 4, "--data.workers", 0, "--trainer.epochs", 2)
    outcome = widefield(
        "train", "image_folder", "--data.root", photos, *small, "--trainer.tensorboard", False, "--output", run
    )
    assert outcome.code == 0, outcome.err
    assert summary_of(run)["split"] == "validation"
    outcome = widefield("predict", photos / "red" / "0.png", photos / "blue" / "1.png", "--run", run)
    assert outcome.code == 0
    assert outcome.out.count(" %") == 4
    assert "red" in outcome.out


def test_predict_names_the_top_five_with_probabilities(finished_run: Path, widefield, tmp_path: Path) -> None:
    image = tmp_path / "digit.png"
    Image.new("L", (20, 20), 128).save(image)
    outcome = widefield("predict", image, "--run", finished_run)
    shares = [float(line.split()[-2]) for line in outcome.out.splitlines() if line.strip().endswith("%")]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.01


def test_merge_writes_a_file_that_evaluates_alike_and_never_overwrites(
    finished_run: Path, widefield, tmp_path: Path
) -> None:
    output = tmp_path / "small.safetensors"
    outcome = widefield("merge", finished_run, "-o", output)
    assert outcome.code == 0
    assert "relative error of the output" in outcome.out
    assert f"top-1  {summary_of(finished_run)['merged_top1']} %" in widefield("evaluate", output).out
    before = output.read_bytes()
    outcome = widefield("merge", finished_run, "--output", output)
    assert outcome.code == 2
    assert "which exists: name another with --output" in outcome.err
    assert output.read_bytes() == before
    outcome = widefield("merge", output, "-o", tmp_path / "other.safetensors")
    assert outcome.code == 2
    assert "which is merged already" in outcome.err


def test_training_starts_from_another_run_with_a_new_head(
    finished_run: Path, photos: Path, widefield, tmp_path: Path
) -> None:
    words = ("--data.image-size", 32, "--data.batch-size", 4, "--data.workers", 0, "--trainer.epochs", 1)
    words = ("train", "image_folder", "--data.root", photos, *words, "--trainer.tensorboard", False)
    outcome = widefield(*words, "--model.weights", finished_run, "--output", tmp_path / "tuned")
    assert outcome.code == 0, outcome.err
    outcome = widefield(*words, "--model.weights", finished_run / "merged.safetensors", "--output", tmp_path / "no")
    assert outcome.code == 2
    assert "a checkpoint in train form to start from" in outcome.err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["--help", "--recipes"])
def test_help_and_recipes_are_shown(name: str, widefield) -> None:
    outcome = widefield("train", name)
    assert outcome.code == 0
    assert "quickstart" in outcome.out
