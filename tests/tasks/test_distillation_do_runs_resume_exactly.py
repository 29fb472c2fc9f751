from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tasks.distillation_support import student_run, write_teacher

from widefield._core.errors import InputError
from widefield.data import AugmentationConfig
from widefield.engine import LogReporter, OptimizerConfig
from widefield.tasks.classification import load_classifier, run, train
from widefield.tasks.classification.distillation import Distillation


class PowerCut(Exception):
    pass


class CutAt(LogReporter):
    """Ends the process's part of a run after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, epoch: int, step: int, loss: float, lr: float) -> None:
        if step == self.step:
            raise PowerCut


@pytest.fixture
def teachers(monkeypatch: pytest.MonkeyPatch) -> list[Distillation]:
    """What the runs of a test start with, with a copy of the teacher's tensors at that time."""
    known: list[Any] = []
    real = run.start_distillation

    def remember(*arguments: Any, **options: Any) -> Distillation:
        distillation = real(*arguments, **options)
        state = distillation.teacher.network.state_dict()
        known.append((distillation, {name: tensor.clone() for name, tensor in state.items()}))
        return distillation

    monkeypatch.setattr(run, "start_distillation", remember)
    return known


def test_a_run_cut_short_ends_bit_equal_and_its_teacher_is_as_it_was(tmp_path: Path, teachers: list[Any]) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    config = student_run(teacher, methods=("feature",), reductions=(16, 32), ema=0.9)
    assert train(config, tmp_path / "whole") is not None
    with pytest.raises(PowerCut):
        train(config, tmp_path / "broken", reporter=CutAt(1))
    assert not (tmp_path / "broken" / "summary.json").exists()
    train(config, tmp_path / "broken", resume=True)
    for name in ("model.safetensors", "merged.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[0].startswith("epoch")

    assert len(teachers) == 3
    for distillation, before in teachers:
        network = distillation.teacher.network
        assert not network.training
        assert all(not parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, before[name])

    # What is left is a student like any other, without teacher or adapters.
    model, card = load_classifier(tmp_path / "whole")
    assert card.model.kernel_sizes == (7, 7, 7, 7)
    assert set(load_file(tmp_path / "whole" / "model.safetensors")) == set(model.state_dict())


def test_another_teacher_is_refused_on_resume(tmp_path: Path) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors")
    config = student_run(teacher)
    with pytest.raises(PowerCut):
        train(config, tmp_path / "run", reporter=CutAt(1))
    record = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert record["model"] == "replknet_nano"
    assert record["merge_relative_error"] < 1e-5
    content = bytearray(teacher.read_bytes())
    content[-1] ^= 1
    teacher.write_bytes(content)
    with pytest.raises(
        InputError,
        match=r"Expected the teacher that the run in .*run was begun with, but got .*teacher\.safetensors, which has "
        r"changed since: restore that file, or start a new run",
    ):
        train(config, tmp_path / "run", resume=True)


def losses(folder: Path) -> list[float]:
    with (folder / "steps.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_that_match_features_give_the_losses_of_one(tmp_path: Path) -> None:
    for part, count in (("train", 16), ("val", 4)):
        for index in range(3 * count):
            file = tmp_path / "photos" / part / "abc"[index % 3] / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.effect_noise((32, 32), 20 + 40 * (index % 3)).convert("RGB").save(file)
    base = student_run(write_teacher(tmp_path / "teacher.safetensors", classes=("a", "b", "c")), methods=("feature",))
    config = replace(
        base,
        data=replace(base.data, root=str(tmp_path / "photos"), batch_size=16),
        # Neither drop path nor augmentation is drawn alike by other numbers of processes.
        model=replace(base.model, drop_path_rate=0.0),
        augmentation=AugmentationConfig(enabled=False),
        optimizer=OptimizerConfig(lr=1e-5),
        trainer=replace(base.trainer, accumulate_steps=1, epochs=2),
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    train(config, tmp_path / "one")
    words = ("--standalone", "--nproc-per-node", "2", "-m", "widefield", "train")
    command = [sys.executable, "-m", "torch.distributed.run", *words, "--config", str(tmp_path / "config.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "two")], capture_output=True, text=True, env=environment, timeout=250
    )
    assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 6
    assert max(abs(a - b) / a for a, b in zip(one, two, strict=True)) < 1e-5
