from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from widefield.checkpoints.files import read_weights
from widefield.tasks.classification import load_classifier, save_classifier


def refused(outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.err
    sentence = outcome.err.strip()
    assert len(sentence.splitlines()) == 1, sentence
    assert sentence.startswith("error: Expected ")
    for part in parts:
        assert part in sentence


@pytest.fixture
def merged(finished_run: Path, widefield, tmp_path: Path) -> Path:
    """A checkpoint merged with its way back beside it."""
    path = tmp_path / "small.safetensors"
    outcome = widefield("merge", "--un-merge-info", finished_run, "-o", path)
    assert outcome.code == 0, outcome.err
    assert f"wrote {tmp_path / 'small.branched.safetensors'}, which widefield merge --undo needs" in outcome.out
    assert f"wrote {path}" in outcome.out
    return path


def test_the_train_form_comes_back_byte_for_byte(merged: Path, finished_run: Path, widefield, tmp_path: Path) -> None:
    outcome = widefield("merge", merged, "--undo", "-o", tmp_path / "back.safetensors")
    assert outcome.code == 0, outcome.err
    assert "restored 343 tensors of the train form" in outcome.out
    assert (tmp_path / "back.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()
    assert widefield("merge", "--undo", "True", merged).code == 0
    assert (tmp_path / "small.unmerged.safetensors").is_file()


def test_the_merged_file_is_an_ordinary_one_and_the_info_small(
    merged: Path, finished_run: Path, widefield, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.safetensors"
    assert widefield("merge", finished_run, "-o", plain, "--un-merge-info", "False").code == 0
    assert merged.read_bytes() == plain.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "small.safetensors",
        "small.branched.safetensors",
        "plain.safetensors",
    }
    kept, _ = read_weights(tmp_path / "small.branched.safetensors")
    assert len(kept) < 343
    assert "head.fc.weight" not in kept


def test_without_the_info_there_is_no_way_back(finished_run: Path, merged: Path, widefield, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy(merged, alone)
    refused(
        widefield("merge", alone, "--undo"),
        "Expected alone.branched.safetensors beside the merged checkpoint, as --un-merge-info writes it",
        f"but got {alone} alone: take the checkpoint in train form, since branches cannot be told apart",
    )
    refused(widefield("merge", finished_run, "--undo", "-o", tmp_path / "a"), "Expected merged.branched.safetensors")
    shutil.copy(merged, tmp_path / "alone.branched.safetensors")
    refused(widefield("merge", alone, "--undo"), "a file that keeps what a merge leaves out", "of another kind")
    assert not (tmp_path / "alone.unmerged.safetensors").exists()


def test_weights_trained_since_the_merge_have_no_way_back(merged: Path, widefield) -> None:
    model, card = load_classifier(merged, "merged")
    state = model.state_dict()
    state["head.fc.bias"] = state["head.fc.bias"] + torch.tensor(1e-3)
    save_classifier(merged, state, card)
    refused(widefield("merge", merged, "--undo"), "the merged weights as they came from the merge", "trained further")


def test_nothing_is_overwritten(merged: Path, finished_run: Path, widefield, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    (tmp_path / "other.branched.safetensors").write_text("mine")
    refused(
        widefield("merge", finished_run, "--un-merge-info", "-o", other), "other.branched.safetensors, which exists"
    )
    assert not other.exists()
    assert (tmp_path / "other.branched.safetensors").read_text() == "mine"
    (tmp_path / "small.unmerged.safetensors").write_text("mine")
    refused(widefield("merge", merged, "--undo"), "small.unmerged.safetensors, which exists: name another")
    assert (tmp_path / "small.unmerged.safetensors").read_text() == "mine"


def test_the_forms_are_not_mixed_up(merged: Path, finished_run: Path, widefield, tmp_path: Path) -> None:
    branched = finished_run / "model.safetensors"
    refused(widefield("merge", branched, "--undo", "-o", tmp_path / "a"), "a merged checkpoint", "in train form")
    refused(
        widefield("merge", merged, "--undo", "--un-merge-info"),
        "Expected one of --undo and --un-merge-info, but got both: keep the info when merging, and undo later.",
    )
    refused(widefield("merge", merged, "--undoo"), "--undoo", "did you mean --undo")
