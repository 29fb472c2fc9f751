"""The allocation "snip" in a run: one batch that is not mixed, plain cross-entropy, the same on all processes."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tasks import snip_ranks
from tasks.snip_ranks import Place, masks_of, run

from widefield.data import open_splits, train_loader
from widefield.engine import seed_everything
from widefield.sparsity import Masks
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.classification.sparse import first_masks
from widefield.tasks.distillation import AdaptedStudent


@pytest.fixture(scope="module")
def alone() -> Masks:
    return masks_of(run())


@pytest.mark.parametrize("mixing", [{"mixup": 0.8, "cutmix": 1.0}, {"cutmix": 1.0}, {"label_smoothing": 0.5}])
def test_neither_mixing_nor_smoothing_is_seen(mixing: dict[str, Any], alone: Masks) -> None:
    assert masks_of(run(**mixing)).equals(alone)


def test_the_images_are_augmented_as_in_training(alone: Masks) -> None:
    assert masks_of(run(enabled=False)).counts != alone.counts


def test_counts_are_those_of_the_largest_products_over_one_batch(alone: Masks) -> None:
    config = run()
    seed_everything(0)
    model = make_classifier(config.model, 10).train()
    loader = train_loader(open_splits(config.data).train, config.data, config.augmentation, seed=config.trainer.seed)
    batch = next(iter(loader.epoch(0)))
    F.cross_entropy(model(batch.images), batch.targets).backward()
    scores = {
        name: (parameter * parameter.grad).abs().flatten()
        for name, parameter in model.named_parameters()
        if name in alone and parameter.grad is not None
    }
    assert scores.keys() == alone.keys()
    kept = round(0.6 * sum(len(score) for score in scores.values()))
    threshold = torch.cat(list(scores.values())).topk(kept).values.min()
    for name, score in scores.items():
        count = int((score >= threshold).sum())
        assert alone.counts[name] == (len(score) if count >= 0.99 * len(score) else count), name


def test_a_student_with_adapters_gets_the_masks_of_one_without(alone: Masks) -> None:
    config = run(mixup=0.8)
    seed_everything(0)
    student = make_classifier(config.model, 10)
    trained = AdaptedStudent(student, copy.deepcopy(student), (32,), 32)
    seed_everything(0, 0)
    place: Any = Place()
    masks = first_masks(trained, config, open_splits(config.data).train, place)
    assert {name.removeprefix("student."): count for name, count in masks.counts.items()} == alone.counts


def test_more_batches_are_added_up(alone: Masks) -> None:
    config = run()
    assert config.sparsity is not None
    more = masks_of(replace(config, sparsity=replace(config.sparsity, snip_batches=3)))
    assert more.counts != alone.counts
    assert list(more) == list(alone)


@pytest.mark.slow
def test_two_processes_draw_the_masks_of_one(tmp_path: Path, alone: Masks) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, snip_ranks.__file__, str(tmp_path), str(rank)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
    first, second = (load_file(tmp_path / f"masks_{rank}.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in alone)
    # Each saw half of the batch; rounding moves scores across the threshold, a different batch moves many more.
    other = copy.deepcopy(alone)
    other.load_state_dict(first)
    moved = sum(abs(other.counts[name] - alone.counts[name]) for name in alone)
    assert moved < 1e-4 * alone.size
