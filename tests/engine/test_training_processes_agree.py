from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import torch
from engine.conftest import LONG, SHORT, TORCHRUN
from engine.small_run import Images, make_trainer
from safetensors.torch import load_file

from widefield.engine import RunFolder

if TYPE_CHECKING:
    from pathlib import Path

    from engine.conftest import TwoProcesses


def curve(path: Path) -> list[float]:
    with (path / "steps.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_give_the_loss_curve_of_one(two_processes: TwoProcesses, tmp_path: Path) -> None:
    runs = two_processes.folder
    one = make_trainer(RunFolder.create(tmp_path / "one", False, 0), data=Images(3, 16), **LONG)
    one.fit()
    curves = curve(tmp_path / "one"), curve(runs / "long")
    assert len(curves[0]) == len(curves[1]) == 24
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-5
    assert curves[0][-1] < curves[0][0]
    weights = load_file(runs / "long" / "model.safetensors")
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-3, atol=1e-4)
    assert json.loads((runs / "long" / "summary.json").read_text())["kind"] == "BatchNorm2d"


def test_a_run_of_two_processes_resumes_exactly(run_small: Any, two_processes: TwoProcesses) -> None:
    runs = two_processes.folder
    assert (runs / "whole" / "summary.json").is_file(), two_processes.errors
    assert not (runs / "cut" / "summary.json").exists()
    rest = run_small([{"folder": str(runs / "cut"), "resume": True, "changes": SHORT}], *TORCHRUN)
    assert rest.returncode == 0, rest.stderr
    for name in ("model.safetensors", "best.safetensors"):
        weights = [load_file(runs / run / name) for run in ("whole", "cut")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0]), name
    assert (runs / "whole" / "steps.csv").read_text() == (runs / "cut" / "steps.csv").read_text()
