from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from widefield._core.errors import InputError
from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import EmaConfig, LogReporter, OptimizerConfig, ScheduleConfig, TrainerConfig
from widefield.sparsity import SparsityConfig
from widefield.tasks.classification import ModelConfig, RunConfig, train


def sparse_run(**trainer: Any) -> RunConfig:
    """Three updates of two batches each, masks that change after each update but the last, and an average."""
    return RunConfig(
        model=ModelConfig(name="replknet_nano", kernel_sizes=(7, 7, 7, 7)),
        data=DataConfig(root="embedded:digits", image_size=32, batch_size=192, workers=0, crop_fraction=1.0),
        augmentation=AugmentationConfig(auto_augment=None, random_erasing=0.0, color_jitter=0.0),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(warmup_epochs=0),
        ema=EmaConfig(decay=0.5),
        trainer=TrainerConfig(
            epochs=1,
            accumulate_steps=2,
            device="cpu",
            tensorboard=False,
            checkpoint_every_steps=1,
            log_every_steps=1,
            **trainer,
        ),
        sparsity=SparsityConfig(sparsity=0.4, update_every=1, allocation="snip"),
    )


class PowerCut(Exception):
    pass


class CutAt(LogReporter):
    """Ends the process's part of a run after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, epoch: int, step: int, loss: float, lr: float) -> None:
        if step == self.step:
            raise PowerCut


def zeros(path: Path) -> dict[str, int]:
    return {
        name: int((tensor == 0).sum())
        for name, tensor in load_file(path).items()
        if tensor.dim() in (2, 4) and name.endswith("weight")
    }


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_weights_and_their_average_have_the_zeros_that_were_asked_for(tmp_path: Path, precision: str) -> None:
    result = train(sparse_run(precision=precision), tmp_path / "run")
    assert result is not None
    summary, report = result
    state = load_file(tmp_path / "run" / "model.safetensors")
    sparse = {name: tensor for name, tensor in state.items() if tensor.dim() in (2, 4) and name.endswith("weight")}
    kept = sum(int(tensor.count_nonzero()) for tensor in sparse.values())
    total = sum(tensor.numel() for tensor in sparse.values())
    # Inactive weights are zero in the average too; of the active ones only those may be that have just grown.
    assert 0.5 * total < kept <= round(0.6 * total)
    assert summary.nonzero_parameters < 0.7 * summary.parameters
    assert report.relative_error < 1e-4
    rows = (tmp_path / "run" / "metrics.csv").read_text(encoding="utf-8").splitlines()
    density = float(rows[1].split(",")[rows[0].split(",").index("density")])
    assert density == pytest.approx(0.6, abs=1e-4)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["nonzero_parameters"] == (
        summary.nonzero_parameters
    )


def test_a_run_that_was_cut_goes_on_with_the_same_masks(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(sparse_run(), whole)
    with pytest.raises(PowerCut):
        train(sparse_run(), cut, reporter=CutAt(2))
    train(sparse_run(), cut, resume=True)
    for name in ("model.safetensors", "merged.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert zeros(cut / "model.safetensors") == zeros(whole / "model.safetensors")


@pytest.mark.slow
def test_a_dense_run_cannot_be_taken_up_as_a_sparse_one(tmp_path: Path) -> None:
    dense = replace(sparse_run(), sparsity=None)
    train(dense, tmp_path / "run")
    with pytest.raises(InputError):
        train(sparse_run(), tmp_path / "run", resume=True)


def test_nothing_selected_is_told(tmp_path: Path) -> None:
    config = replace(sparse_run(), sparsity=SparsityConfig(pattern="no_such_layer"))
    with pytest.raises(InputError, match="at least one trainable parameter to make sparse"):
        train(config, tmp_path / "run")
