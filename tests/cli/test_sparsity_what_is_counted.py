from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from widefield._core.errors import RunInterruptedError
from widefield.cli import models as models_command
from widefield.sparsity import load_sparse
from widefield.tasks.classification import load_classifier, save_classifier


@pytest.fixture
def half_empty(finished_run: Path, tmp_path: Path) -> Path:
    """The run's network with every second weight of its matrices at zero."""
    model, card = load_classifier(finished_run)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() in (2, 4):
                parameter.view(-1)[::2] = 0
    save_classifier(tmp_path / "sparse.safetensors", model.state_dict(), card)
    return tmp_path / "sparse.safetensors"


def test_zeros_are_counted_packed_and_told(half_empty: Path, widefield, tmp_path: Path) -> None:
    packed, counts = tmp_path / "packed.safetensors", tmp_path / "counts.json"
    outcome = widefield("sparsity", half_empty, "-o", counts, "--pack", packed, "--compact", "True")
    assert outcome.code == 0, outcome.err
    assert "an ordinary device computes all of them" in outcome.out
    # Every second column of each 1x1 convolution is zero, so half of the hidden channels are.
    assert re.search(r"\d+ hidden channels of \d+ pairs .* were taken out: [\d,]+ -> [\d,]+ parameters", outcome.out)
    rows = json.loads(counts.read_text(encoding="utf-8"))["rows"]
    matrices = [row for row in rows if len(row["shape"]) > 1]
    assert all(row["nonzeros"] == row["parameters"] // 2 for row in matrices)
    assert packed.stat().st_size < half_empty.stat().st_size
    model, _ = load_classifier(half_empty)
    restored = load_sparse(packed)
    assert all(torch.equal(tensor, restored[name]) for name, tensor in model.state_dict().items())


def test_nothing_is_overwritten(half_empty: Path, widefield, tmp_path: Path) -> None:
    outcome = widefield("sparsity", half_empty, "--pack", half_empty)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: Expected a new file to write, but got {half_empty}, which exists")


def test_a_run_that_a_signal_ended_is_no_failure(widefield, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(words: object) -> None:
        raise RunInterruptedError("stopped after step 7: take it up with widefield train --resume RUN")

    monkeypatch.setattr(models_command, "run", interrupted)
    outcome = widefield("models")
    assert outcome.code == 0
    assert "stopped after step 7" in outcome.err
