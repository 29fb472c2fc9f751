"""What a user can get wrong: one sentence with what was expected, what came and what to do; code 2; nothing written."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from cli_support import SMALL

PHOTOS = ("train", "image_folder", "--data.image-size", 32, "--data.batch-size", 4, *SMALL)


def refused(outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.err
    sentence = outcome.err.strip()
    assert len(sentence.splitlines()) == 1, sentence
    assert sentence.startswith("error: Expected ")
    assert ", but got " in sentence
    for part in parts:
        assert part in sentence


def test_a_missing_folder_is_named(widefield, tmp_path: Path) -> None:
    outcome = widefield(*PHOTOS, "--data.root", tmp_path / "nowhere", "--output", tmp_path / "run")
    refused(outcome, "nowhere")
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_named(widefield, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = widefield(*PHOTOS, "--data.root", tmp_path / "empty", "--output", tmp_path / "run")
    refused(outcome, "empty")
    assert not (tmp_path / "run").exists()


def test_a_class_folder_without_images_is_named(widefield, photos: Path, tmp_path: Path) -> None:
    (photos / "green").mkdir()
    outcome = widefield(*PHOTOS, "--data.root", photos, "--output", tmp_path / "run")
    refused(outcome, "green")
    assert not (tmp_path / "run").exists()


def test_an_undecodable_image_stops_the_run_and_is_named(widefield, photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "broken.png").write_bytes(b"not an image at all")
    outcome = widefield(*PHOTOS, "--data.root", photos, "--output", tmp_path / "run")
    refused(outcome, "broken.png")


def test_an_undecodable_image_is_skipped_and_counted_on_request(widefield, photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "broken.png").write_bytes(b"not an image at all")
    outcome = widefield(*PHOTOS, "--data.root", photos, "--data.on-error", "skip", "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "left out 1 image that could not be decoded" in outcome.out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    outcome = widefield("evaluate", tmp_path / "run")
    assert f"top-1  {summary['top1']} %" in outcome.out


def test_an_unknown_recipe_gets_the_nearest_name(widefield) -> None:
    refused(widefield("train", "quickstrat"), "the name of a recipe", "'quickstrat'", "did you mean 'quickstart'")


def test_an_unknown_field_gets_the_nearest_name(widefield, tmp_path: Path) -> None:
    outcome = widefield("train", "--optimizer.learning-rate", 0.1, "--output", tmp_path / "run")
    refused(outcome, "--optimizer.learning-rate")
    outcome = widefield("train", "--optimiser.lr", 0.1, "--output", tmp_path / "run")
    refused(outcome, "an option of widefield train quickstart", "--optimiser.lr", "did you mean --optimizer.lr")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("slak_t_in1k_300ep", "--sparsity.update-evry", 100), "did you mean --sparsity.update-every"),
        (("slak_t_in1k_300ep", "--sparsty.update-every", 100), "did you mean --sparsity.update-every"),
        (("--sparsity.sparsty", 0.4), "did you mean --sparsity.sparsity"),
        (("--sparsty.sparsity", 0.4), "or --sparsity.sparsity"),
        (("--sparsty", "None"), "did you mean --sparsity or "),
    ],
)
def test_an_unknown_field_of_a_config_that_may_be_none_gets_the_nearest_name(words, hint: str, widefield) -> None:
    refused(widefield("train", *words), "an option of widefield train", hint)


def test_a_value_of_another_type_leaves_with_code_2(widefield, tmp_path: Path) -> None:
    outcome = widefield("train", "--trainer.epochs", "many", "--output", tmp_path / "run")
    refused(outcome, "--trainer.epochs", "many")


def test_an_unknown_command_gets_the_nearest_name(widefield) -> None:
    refused(widefield("trian"), "the name of a command", "did you mean 'train'")


def test_an_unknown_model_gets_the_nearest_name(widefield, tmp_path: Path) -> None:
    outcome = widefield("train", *SMALL, "--model.name", "replknet_31x", "--output", tmp_path / "run")
    refused(outcome, "the name of a model", "'replknet_31")
    refused(widefield("models", "replknet_nao"), "'replknet_nano'")


def test_an_unknown_field_of_a_config_file_is_named(widefield, finished_run: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text((finished_run / "config.yaml").read_text().replace("batch_size:", "batchsize:"))
    outcome = widefield("train", "--config", config, "--output", tmp_path / "run")
    refused(outcome, "a field of data", "'batchsize'", "'batch_size'")
    config.write_text("model: [")
    refused(widefield("train", "--config", config), "a config file in YAML")


def test_a_checkpoint_of_another_model_is_refused(widefield, finished_run: Path, photos: Path, tmp_path: Path) -> None:
    outcome = widefield(
        *PHOTOS, "--data.root", photos, "--model.name", "replknet_tiny", "--model.weights", finished_run,
        "--output", tmp_path / "run",
    )  # fmt: skip
    refused(outcome, "weights of RepLKNet in this configuration")
    assert not (tmp_path / "run").exists()
    outcome = widefield("evaluate", finished_run, "--model", "replknet_31b")
    refused(outcome, "a checkpoint of replknet_31b")


def test_a_truncated_checkpoint_is_refused(widefield, finished_run: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((finished_run / "model.safetensors").read_bytes()[:100_000])
    refused(widefield("evaluate", cut), "truncated", "copy or download it again")


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_pickled_object_is_refused_and_never_executed(widefield, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    for name, write in (("new.pth", torch.save), ("old.pth", lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2)))):
        write({"model": _Canary(canary)}, tmp_path / name)
        refused(widefield("evaluate", tmp_path / name, "--model", "replknet_nano"), "pickled object", "not loaded")
    assert not canary.exists()
    pickle.loads((tmp_path / "old.pth").read_bytes())
    assert canary.exists(), "the canary would have shown an execution"


def test_a_run_folder_with_something_in_it_is_not_touched(widefield, finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    refused(widefield("train", *SMALL, "--output", finished_run), "which has something in it", "resume")
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == before


def test_a_run_folder_that_cannot_be_written_is_refused(widefield, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    outcome = widefield("train", *SMALL, "--output", tmp_path / "file" / "run")
    refused(outcome, "a folder that can be written", str(tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_disk_without_enough_space_is_refused_before_the_run(widefield, tmp_path: Path, monkeypatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    refused(widefield("train", *SMALL, "--output", tmp_path / "run"), "MB free for the run", "1 MB on the disk")
    assert not (tmp_path / "run").exists()


def test_a_disk_that_fills_up_during_the_run_ends_it_with_one_sentence(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from widefield.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["train", *map(str, SMALL), "--output", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 1, done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("error: Writing ")
    assert "resume the run" in sentence
    assert str(tmp_path / "run") in sentence
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("size", [0, 16, 31])
def test_an_image_size_that_the_model_cannot_take_is_refused(size: int, widefield, tmp_path: Path) -> None:
    outcome = widefield("train", *SMALL, "--data.image-size", size, "--output", tmp_path / "run")
    refused(outcome, str(size))
    assert not (tmp_path / "run").exists()


def test_a_model_of_fixed_size_says_so(widefield, tmp_path: Path) -> None:
    words = ("--model.name", "deit_tiny_patch16_224", "--data.image-size", 96)
    outcome = widefield("train", *SMALL, *words, "--output", tmp_path / "run")
    refused(outcome, "an image size that VisionTransformer takes", "change --data.image-size")


def test_settings_that_a_model_does_not_take_are_refused(widefield, tmp_path: Path) -> None:
    words = ("--model.name", "resnet18", "--model.kernel-sizes", 13, 13, 13, 13)
    outcome = widefield("train", *SMALL, *words, "--output", tmp_path / "run")
    refused(outcome, "settings that resnet18 takes", "kernel_sizes")
    words = ("--model.kernel-sizes", 13, 13)
    refused(
        widefield("train", *SMALL, *words, "--output", tmp_path / "run"),
        "one kernel size for each stage",
        "2 kernel sizes",
    )


def test_images_to_predict_must_be_images(widefield, finished_run: Path, tmp_path: Path) -> None:
    refused(widefield("predict", tmp_path / "none.jpg", "--run", finished_run), "none.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    refused(widefield("predict", tmp_path / "text.jpg", "--run", finished_run), "text.jpg")


def test_other_classes_than_the_checkpoints_are_refused(widefield, finished_run: Path, photos: Path) -> None:
    outcome = widefield("evaluate", finished_run, "--root", photos, "--workers", 0, "--split", "validation")
    refused(outcome, "the classes of the checkpoint (10, first '0')", "use data with the same class names")


def test_a_checkpoint_without_a_card_asks_for_the_model(widefield, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    refused(widefield("evaluate", tmp_path / "other.pth"), "says which model it is", "--model replknet_31b")


def test_an_archive_cut_short_is_named(widefield, photos: Path, tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for image in photos.rglob("*.png"):
            file.write(image, image.relative_to(photos))
    archive.write_bytes(archive.read_bytes()[:-30])
    refused(widefield(*PHOTOS, "--data.root", archive, "--output", tmp_path / "run"), "photos.zip")


def test_explain_needs_an_odd_kernel(widefield) -> None:
    refused(widefield("explain", 1, 8, 14, 14, 12), "an odd kernel size", "use 13x13")


def test_explain_needs_a_device_that_exists(widefield) -> None:
    refused(widefield("explain", 1, 8, 14, 14, 13, "--device", "gpu"), "a device type of PyTorch", "'gpu'", 'use "cpu"')
