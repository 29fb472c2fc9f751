"""A run that holds no images back: no score, the last weights, and a summary that says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tasks.photo_run import CutAt, PowerCut, photo_run, write_photo, write_photos

from widefield._core.errors import InputError
from widefield.data import DataConfig, open_split, open_splits
from widefield.engine import read_checkpoint
from widefield.recipes import GROUPS
from widefield.sparsity import SparsityConfig
from widefield.tasks.classification import RunConfig, load_classifier, train
from widefield.tasks.classification.estimate import Counts, _counts
from widefield.tasks.distillation import DistillationConfig

ALL: dict[str, Any] = {"validation_fraction": 0.0}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty photos of two classes, and a class with a single one, of which nothing could be held back."""
    root = write_photos(tmp_path / "photos")
    write_photo(root / "cow" / "only.png", 3)
    return root


def weights(run: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / name)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_all_images_are_in_train_and_no_other_part_is_made_up(photos: Path) -> None:
    splits = open_splits(DataConfig(root=str(photos), **ALL))
    assert (len(splits.train), splits.validation, splits.test) == (21, None, None)
    assert splits.description.endswith("3 classes, 21 train images (none held back for validation)")
    assert len(open_split(DataConfig(root=str(photos), **ALL), "train")) == 21
    with pytest.raises(InputError, match=r"a validation split, but got .*photos' without one, and none drawn .*choose"):
        open_split(DataConfig(root=str(photos), **ALL), "validation")


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_last_weights_are_kept_and_no_score_is_told(photos: Path, tmp_path: Path, ema: float | None) -> None:
    run = tmp_path / "run"
    assert train(photo_run(photos, data=ALL, ema=ema), run) is not None
    summary = json.loads((run / "summary.json").read_text())
    scores = ("split", "top1", "top5", "merged_top1", "merged_prediction_differences")
    assert {name: summary[name] for name in (*scores, "validation_top1", "last_validation_top1")} == dict.fromkeys(
        (*scores, "validation_top1", "last_validation_top1")
    )
    assert (summary["train_images"], summary["images"], summary["best_epoch"]) == (21, 0, 2)
    assert summary["merge_relative_error"] < 1e-5
    tensors, _ = read_checkpoint(run / "checkpoints" / "step_00000010")
    part = "model/" if ema is None else "ema/"
    last = {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
    assert same(weights(run), last)
    assert load_classifier(run, "merged")[1].split is None
    assert (run / "curves.png").is_file()
    assert not (run / "confusion_matrix.png").exists()
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert header == "epoch,step,lr,train_loss,seconds"


def sparse(config: RunConfig, teacher: Path) -> RunConfig:
    return replace(config, sparsity=SparsityConfig(sparsity=0.4, update_every=1), ema=replace(config.ema, decay=0.5))


def taught(config: RunConfig, teacher: Path) -> RunConfig:
    return replace(config, distillation=DistillationConfig(teacher=str(teacher), methods=("kd",)))


@pytest.mark.parametrize("change", [sparse, taught])
def test_a_run_that_was_cut_ends_as_if_it_had_not_been(change: Any, photos: Path, tmp_path: Path) -> None:
    train(photo_run(photos, data=ALL, epochs=1), tmp_path / "teacher")
    config = change(photo_run(photos, data=ALL), tmp_path / "teacher")
    train(config, tmp_path / "whole")
    with pytest.raises(PowerCut):
        train(config, tmp_path / "cut", reporter=CutAt(7))
    train(config, tmp_path / "cut", resume=True)
    for name in ("model.safetensors", "merged.safetensors"):
        assert same(weights(tmp_path / "cut", name), weights(tmp_path / "whole", name))


def test_a_part_of_the_datas_own_is_used_all_the_same(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    write_photos(root / "train")
    write_photos(root / "test", count=3)
    result = train(photo_run(root, data=ALL, epochs=1), tmp_path / "tested")
    assert result is not None
    assert (result[0].split, result[0].images, result[0].validation_top1) == ("test", 6, None)
    assert result[0].top1 is not None
    assert (tmp_path / "tested" / "confusion_matrix.png").is_file()
    write_photos(root / "val", count=2)
    result = train(photo_run(root, data=ALL, epochs=1), tmp_path / "chosen")
    assert result is not None
    assert result[0].validation_top1 is not None


def test_the_estimate_counts_no_validation(photos: Path) -> None:
    config = photo_run(photos, data=ALL)
    counts = _counts(config, open_splits(config.data), 1)
    assert counts == Counts(
        train_images=21,
        validation_images=None,
        test_images=None,
        batches_per_epoch=5,
        updates_per_epoch=5,
        updates=10,
        warmup_updates=0,
    )


def test_the_recipes_for_data_without_a_validation_part_train_on_all_of_it() -> None:
    recipes = [function for functions in GROUPS.values() for function in functions]
    on_all = {function.__name__ for function in recipes if function().data.validation_fraction == 0}
    assert on_all == {
        function.__name__
        for function in recipes
        if function().data.root in ("imagenet-22k", "megdata-73m") and function().model.weights is None
    }
    assert len(on_all) >= 7
