from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.architectures import ARCHITECTURES
from support.golden import record
from torch import Tensor

from widefield.checkpoints.files import read_checkpoint, read_weights
from widefield.checkpoints.layouts import in_layout

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "published.pth"
    torch.save({"model": BY_NAME["unireplknet"].published(), "model_ema": {"x": torch.ones(1)}}, path)
    return path


def small(name: str, form: str = "state") -> dict[str, Tensor]:
    """A state dict with the names and shapes of a record."""
    generator = torch.Generator().manual_seed(0)
    values = record(name)
    entries = values["state"] if form == "state" else values[form]["state"]
    return {
        key: torch.zeros([], dtype=torch.int64)
        if key.endswith("num_batches_tracked")
        else torch.rand(shape, generator=generator)
        for key, shape in entries
    }


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in expected)


def refused(outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.err
    sentence = outcome.err.strip()
    assert len(sentence.splitlines()) == 1, sentence
    assert sentence.startswith("error: Expected ")
    for part in parts:
        assert part in sentence


def test_a_published_file_becomes_ours_and_published_again(widefield, published: Path, tmp_path: Path) -> None:
    outcome = widefield("convert", published, "-o", tmp_path / "ours.safetensors")
    assert outcome.code == 0, outcome.err
    for line in (
        "found        the published UniRepLKNet",
        "network      no variant that has a name, branched, 11 classes",
        "channels     8  12  16  24",
        "kernel sizes 3  13 3  31 5 7  17",
        "taken        'model'; the file has 'model_ema' too",
        "all of them mapped",
        "unused rules 2: stages.<s>.<b>.dwconv.bias, norm<i>.<rest>",
        f"wrote {tmp_path / 'ours.safetensors'}",
    ):
        assert line in outcome.out
    ours, _ = read_weights(tmp_path / "ours.safetensors")
    assert same(ours, BY_NAME["unireplknet"].model().state_dict())
    outcome = widefield("convert", tmp_path / "ours.safetensors", "--to", "official", "--output", tmp_path / "back.pth")
    assert outcome.code == 0, outcome.err
    assert same(read_checkpoint(tmp_path / "back.pth").tensors, BY_NAME["unireplknet"].published())


def test_without_an_output_nothing_is_written(widefield, published: Path, tmp_path: Path) -> None:
    assert "found        the published UniRepLKNet" in widefield("convert", published).out
    assert [entry.name for entry in tmp_path.iterdir()] == ["published.pth"]


@pytest.mark.parametrize("form", ["state", "merged"])
def test_a_converted_variant_says_what_it_is_to_the_other_commands(widefield, form: str, tmp_path: Path) -> None:
    torch.save(small("unireplknet_a", form), tmp_path / "a.pth")
    outcome = widefield("convert", tmp_path / "a.pth", "-o", tmp_path / "a.safetensors")
    assert "unireplknet_a" in outcome.out
    outcome = widefield("merge", tmp_path / "a.safetensors")
    if form == "state":
        assert "4,649,060 -> 4,437,300 parameters" in outcome.out
    else:
        refused(outcome, "a checkpoint in train form, but got", "which is merged already")


def test_the_heads_of_a_larger_model_are_counted_and_left_out(widefield, tmp_path: Path) -> None:
    nested = BY_NAME["slak-plain"].published("backbone")
    kept = {key: value for key, value in nested.items() if not key.startswith(("backbone.norm.", "backbone.head."))}
    heads = {f"decode_head.{index}.weight": torch.ones(2) for index in range(3)} | {"neck.bias": torch.ones(1)}
    torch.save({"state_dict": kept | heads, "meta": {"epoch": 3}}, tmp_path / "seg.pth")
    outcome = widefield("convert", tmp_path / "seg.pth", "-o", tmp_path / "ours.safetensors")
    assert "found        the SLaK backbone of a larger model" in outcome.out
    assert "no classifier, a norm for the features of every stage" in outcome.out
    assert "left out     decode_head (3), neck (1)" in outcome.out
    widefield("convert", tmp_path / "ours.safetensors", "--to", "backbone", "-o", tmp_path / "back.pth")
    assert same(read_checkpoint(tmp_path / "back.pth").tensors, kept)


def test_a_classifier_is_left_out_of_a_backbone(widefield, tmp_path: Path) -> None:
    torch.save(BY_NAME["replknet"].published(), tmp_path / "w.pth")
    outcome = widefield("convert", tmp_path / "w.pth", "--to", "backbone", "-o", tmp_path / "b.pth")
    assert "left out     norm (5), head (2): a backbone has no place for them" in outcome.out
    outcome = widefield("convert", tmp_path / "w.pth", "--to", "mmpretrain", "-o", tmp_path / "m.pth")
    assert same(read_checkpoint(tmp_path / "m.pth").tensors, BY_NAME["replknet"].published("mmpretrain"))
    assert "mmpretrain names" in outcome.out
    outcome = widefield("convert", tmp_path / "m.pth", "--to", "official", "-o", tmp_path / "o.pth")
    assert "found        mmpretrain's RepLKNet" in outcome.out
    assert same(read_checkpoint(tmp_path / "o.pth").tensors, BY_NAME["replknet"].published())


def test_the_moving_average_is_converted_on_request(widefield, tmp_path: Path) -> None:
    state = BY_NAME["slak"].published()
    torch.save({"model": state, "model_ema": {key: value + 1 for key, value in state.items()}}, tmp_path / "w.pth")
    outcome = widefield("convert", tmp_path / "w.pth", "--weights", "ema", "-o", tmp_path / "e.safetensors")
    assert "taken        'model_ema'; the file has 'model' too" in outcome.out
    ours, _ = read_weights(tmp_path / "e.safetensors")
    assert same(in_layout(ours, "slak", "official"), {key: value + 1 for key, value in state.items()})


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_damage_is_one_sentence_and_nothing_is_written(widefield, published: Path, tmp_path: Path) -> None:
    state = BY_NAME["unireplknet"].published()
    output = tmp_path / "ours.safetensors"
    key = "stages.3.0.dwconv.lk_origin.weight"
    damaged = {
        "missing": ({name: value for name, value in state.items() if name != key}, f"no {key!r}"),
        "misspelt": (
            {(f"{key}s" if name == key else name): value for name, value in state.items()},
            f"{key + 's'!r} where {key!r} is expected",
        ),
        "misshapen": ({**state, key: state[key][:-1]}, f"{key!r} of shape (23, 1, 17, 17) instead of (24, 1, 17, 17)"),
        "other": ({"conv1.weight": torch.ones(2)}, "weights of a RepLKNet, SLaK or UniRepLKNet"),
        "object": ({**state, "x": _Canary(tmp_path / "canary")}, "a pickled object, which could run code"),
    }
    for name, (content, part) in damaged.items():
        torch.save(content, tmp_path / f"{name}.pth")
        refused(widefield("convert", tmp_path / f"{name}.pth", "-o", output), part)
    (tmp_path / "cut.pth").write_bytes(published.read_bytes()[:-500])
    refused(widefield("convert", tmp_path / "cut.pth", "-o", output), "truncated or damaged")
    refused(widefield("convert", tmp_path / "none.pth", "-o", output), "no file at")
    refused(widefield("convert", published, "-o", published), "a new file to write", "which exists")
    refused(widefield("convert", published, "-o", tmp_path / "x.onnx"), "a file that ends in .safetensors, .pth or .pt")
    refused(widefield("convert", published, "--to", "oficial"), "oficial")
    refused(
        widefield("convert", published, "--to", "mmpretrain", "-o", output), "the one of these families that mmpretrain"
    )
    assert not output.exists()
    assert not (tmp_path / "canary").exists()


def test_help_says_what_it_is_for(widefield) -> None:
    outcome = widefield("convert", "--help")
    assert outcome.code == 0
    assert "what it is, is found out from its content" in outcome.out
    assert "convert" in widefield().out
