from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield._core.files import write_atomically, write_text_atomically
from widefield.checkpoints.files import load_weights, read_checkpoint, read_weights, write_weights

STATE = {"a.weight": torch.randn(20, 3), "b": torch.arange(5), "c": torch.tensor(2.5, dtype=torch.bfloat16)}


class Canary:
    """Unpickling this object would touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def same(actual: dict[str, Tensor]) -> bool:
    return list(actual) == list(STATE) and all(
        torch.equal(actual[key], STATE[key]) and actual[key].dtype == STATE[key].dtype for key in STATE
    )


def refused(path: Path, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        read_weights(path)


def test_what_is_written_is_read_with_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    transposed = {**STATE, "a.weight": STATE["a.weight"].t().contiguous().t().requires_grad_()}
    write_weights(path, transposed, {"source": "here"})
    tensors, metadata = read_weights(path)
    assert same(tensors)
    assert metadata == {"source": "here"}
    write_weights(path, {})
    assert read_weights(path) == ({}, {})


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema"])
def test_pytorch_files_are_read_and_unwrapped(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    content = STATE if wrapper is None else {wrapper: STATE, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tensors, metadata = read_weights(path)
    assert same(tensors)
    assert metadata == {}


def test_the_kind_of_a_file_is_in_its_content_and_not_in_its_name(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.pth")
    assert same(dict(sorted(read_weights(tmp_path / "w.pth")[0].items())))
    torch.save(STATE, tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.safetensors")[0])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    absent, empty = tmp_path / "absent.pth", tmp_path / "empty.pth"
    refused(absent, f"Expected a checkpoint file, but got no file at {absent}: check the path.")
    refused(tmp_path, f"Expected a checkpoint file, but got a folder at {tmp_path}: name the file in it.")
    empty.touch()
    refused(empty, f"Expected a checkpoint file, but got an empty file at {empty}: copy or download it again.")


def test_a_truncated_safetensors_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE)
    whole = path.read_bytes()
    for size in (1, 7, 8, 9, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        text = (
            f"Expected a complete safetensors or PyTorch checkpoint, but got {path}, which is truncated or of another"
        )
        refused(path, text)


@pytest.mark.parametrize("text", ["<html>not found</html>", "version https://git-lfs.github.com/spec/v1\n", "{}"])
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "w.pth"
    path.write_text(text)
    refused(path, "which is truncated or of another kind")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_pytorch_file_is_named_wherever_it_ends(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in [*range(2, 600, 3), len(whole) - 1]:
        path.write_bytes(whole[:size])
        # A file that ends inside the name of a type cannot be told from one that names a type of its own.
        with pytest.raises(InputError, match=r"truncated or damaged \(.+\): copy or download|a pickled object"):
            read_weights(path)
    refused(path, f"Expected a complete PyTorch checkpoint, but got {path}, which is truncated or damaged (")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(tmp_path: Path, zipped: bool) -> None:
    path, canary = tmp_path / "w.pth", tmp_path / "canary"
    torch.save({"model": STATE, "extra": Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
    refused(
        path,
        f"Expected a checkpoint that holds tensors alone, but got {path} with a pickled object, which could run code "
        "and was not loaded: save the state dict alone, with model.state_dict(), or as safetensors.",
    )
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the canary works"


@pytest.mark.parametrize(
    "content",
    [
        nn.Linear(2, 2),
        {"model": STATE, "path": Path("x")},
        {"model": STATE, "array": np.ones(3)},
        {"model": STATE, "type": np.dtype("O")},
        {"model": STATE, "args": argparse.Namespace(function=print)},
    ],
)
def test_whole_modules_and_other_objects_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "with a pickled object, which could run code and was not loaded")


class Number:
    """Pickled as a NumPy number that refers to an object."""

    def __init__(self, content: object) -> None:
        self.content = content

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return np.float64(1.0).__reduce__()[0], (np.dtype("V8"), self.content)


@pytest.mark.parametrize("zipped", [True, False])
def test_settings_and_numbers_of_a_training_script_are_harmless(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    numbers = [kind(1) for kind in (np.float64, np.float32, np.float16, np.int64, np.int32, np.uint8, np.bool_)]
    args = argparse.Namespace(lr=0.1, model="slak_t", seed=np.int64(3))
    torch.save({"model": STATE, "args": args, "best": numbers}, path, _use_new_zipfile_serialization=zipped)
    before = set(torch.serialization.get_safe_globals())
    assert same(read_weights(path)[0])
    assert set(torch.serialization.get_safe_globals()) == before, "allowed for this one file"
    for content in ("text", [1]):
        torch.save({"model": STATE, "best": Number(content)}, path, _use_new_zipfile_serialization=zipped)
        refused(path, "with a pickled object, which could run code and was not loaded")


def test_the_trained_weights_are_taken_unless_their_moving_average_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    average = {key: value + 1 for key, value in STATE.items()}
    torch.save({"model_ema": average, "model": STATE}, path)
    for choice in ("auto", "model"):
        taken = read_checkpoint(path, choice)
        assert same(taken.tensors)
        assert (taken.taken, taken.others) == ("model", ("model_ema",))
    other = read_checkpoint(path, "ema")
    assert all(torch.equal(other.tensors[key], average[key]) for key in STATE)
    assert (other.taken, other.others) == ("model_ema", ("model",))
    torch.save({"state_dict": STATE, "ema_state_dict": {**average, "steps": torch.tensor(7)}}, path)
    assert list(read_checkpoint(path, "ema").tensors) == list(STATE)
    torch.save({"model": STATE}, path)
    text = f"Expected a checkpoint with a moving average of the weights, but got {path} with 'model': leave the choice"
    with pytest.raises(InputError, match=re.escape(text)):
        read_checkpoint(path, "ema")
    torch.save({"model_ema": STATE}, path)
    with pytest.raises(InputError, match=re.escape(f"Expected a checkpoint of a trained model, but got {path} with")):
        read_checkpoint(path, "model")
    torch.save(STATE, path)
    with pytest.raises(InputError, match="with one state dict: leave the choice of weights out"):
        read_checkpoint(path, "ema")
    save_file(STATE, path)
    text = f"Expected a file with a moving average of the weights, but got the safetensors file {path}, which has one"
    with pytest.raises(InputError, match=re.escape(text)):
        read_checkpoint(path, "ema")


def test_the_prefix_of_a_parallel_wrapper_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in STATE.items()}}, path)
    assert same(read_weights(path)[0])
    torch.save({"module.a": STATE["b"], "a": STATE["b"]}, path)
    assert list(read_weights(path)[0]) == ["module.a", "a"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"epoch": 3, "lr": 0.1, "step": 2, "more": 1}, "a dict with 'epoch', 'lr', 'step' in"),
        ({}, "but got a dict with  in"),
        ([1, 2], "but got list in"),
        (torch.ones(2), "but got Tensor in"),
        ({"model": {"a": 1}}, "but got a dict with 'a' in"),
    ],
)
def test_what_is_no_state_dict_is_described(tmp_path: Path, content: object, text: str) -> None:
    path = tmp_path / "w.pth"
    torch.save(content, path)
    refused(path, text)
    refused(path, "Expected a state dict (names to tensors), but got")
    refused(path, "save model.state_dict()")


def test_a_writer_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE)

    def fail(partial: Path) -> None:
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert same(dict(read_weights(path)[0]))
    with pytest.raises(Exception, match="Some tensors share memory"):
        write_weights(path, {"a": STATE["b"], "b": STATE["b"]})
    assert same(dict(read_weights(path)[0]))
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


def test_a_text_is_written_whole(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "t.txt", "größer")
    write_text_atomically(tmp_path / "t.txt", "größe")
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "größe"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weight": None}, "here with 1 names missing (first 'weight')"),
        ({"extra": torch.ones(1)}, "here with 1 names too many (first 'extra')"),
        ({"weight": torch.ones(4, 2)}, "here with 'weight' is (4, 2) there and (4, 3) in the model"),
        (
            {"bias": None, "extra": torch.ones(1), "weight": torch.ones(1)},
            "here with 1 names missing (first 'bias'); 1 names too many (first 'extra'); 'weight' is (1,) there and",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_the_model_is_left_alone(
    change: dict[str, Tensor | None], text: str
) -> None:
    model = nn.Linear(3, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = {"weight": torch.ones(4, 3), "bias": torch.ones(4), **change}
    full = f"Expected weights of Linear in this configuration, but got {text}"
    with pytest.raises(InputError, match=re.escape(full)):
        load_weights(model, {key: value for key, value in changed.items() if value is not None}, "here")
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


def test_weights_that_fit_are_loaded() -> None:
    model = nn.Linear(3, 4)
    load_weights(model, {"weight": torch.ones(4, 3), "bias": torch.zeros(4)}, "here")
    assert model(torch.ones(1, 3)).tolist() == [[3.0] * 4]
