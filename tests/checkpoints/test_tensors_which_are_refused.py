from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.checkpoints.files import load_weights, read_weights, unwrap, write_weights

STATE = {"a": torch.randn(3, 4), "b": torch.tensor(3)}


def refused(path: Path, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        read_weights(path)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.complex64, "complex64"),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
        (torch.float8_e5m2, "float8_e5m2"),
        (torch.uint16, "uint16"),
    ],
)
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_types_that_weights_do_not_have_are_named_with_their_key(
    dtype: torch.dtype, name: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w.{ending}"
    state = {**STATE, "odd": torch.ones(2).to(dtype)}
    torch.save(state, path) if ending == "pth" else save_file(state, path)
    refused(path, f"but got {path} with 'odd' of {name}: write them in one of these types")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda: torch.eye(3).to_sparse(), "'odd' of layout sparse_coo"),
        (lambda: torch.eye(3).to_sparse_csr(), "'odd' of layout sparse_csr"),
        (lambda: torch.ones(2, device="meta"), "1 on the meta device, which have none, the first 'odd'"),
        (lambda: torch.ones(1).expand(5), "with 'odd': save {name: tensor.contiguous()"),
        (lambda: torch.arange(9.0).as_strided((3, 3), (2, 1)), "with 'odd': save {name: tensor.contiguous()"),
    ],
)
def test_tensors_without_values_of_their_own_are_named(made: Callable[[], Tensor], text: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({**STATE, "odd": made()}, path)
    refused(path, text)


@pytest.mark.parametrize("key", [1, None, 2.5, (1, 2)])
def test_keys_that_are_no_names_are_told(key: object, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {**STATE, key: torch.ones(2)}}, path)
    refused(path, f"Expected a state dict whose keys are names, but got {path} with {key!r}: save model.state_dict().")
    with pytest.raises(InputError, match="whose keys are names, but got here"):
        unwrap({key: torch.ones(1)}, "here")


def test_what_shares_memory_is_not_written_and_what_lies_side_by_side_is(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    path = tmp_path / "w.safetensors"
    beside = {"even": flat[:6].view(2, 3).t(), "odd": flat[6:]}
    write_weights(path, beside)
    assert all(torch.equal(read_weights(path)[0][name], beside[name]) for name in beside)
    torch.save({"all": flat[::2], "rest": flat[1::2]}, tmp_path / "w.pth")
    assert torch.equal(read_weights(tmp_path / "w.pth")[0]["rest"], flat[1::2])
    for state in ({"a": flat, "b": flat}, {"a": flat[:7], "b": flat[6:]}, {"a": flat, "b": flat[3:4]}):
        with pytest.raises(InputError, match=r"Some tensors share memory: 'a' and 'b'\): save \{name: tensor.clone"):
            write_weights(tmp_path / "other.safetensors", state)
    assert not (tmp_path / "other.safetensors").exists()


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"weight": torch.ones(4, dtype=torch.int32)}, "'weight' of int32 where float32 is expected"),
        ({"weight": torch.ones(4, dtype=torch.bool)}, "'weight' of bool where float32 is expected"),
        ({"num_batches_tracked": torch.tensor(3.5)}, "'num_batches_tracked' of float32 where int64 is expected"),
        ({"weight": torch.tensor([1.0, float("nan"), 1, 1])}, "'weight', which holds NaN"),
        ({"bias": torch.tensor([1.0, -float("inf"), 1, 1])}, "'bias', which holds infinity"),
        ({"bias": torch.full((4,), float("inf"), dtype=torch.float16)}, "'bias', which holds infinity"),
        ({"bias": torch.full((4,), 1e300, dtype=torch.float64)}, "'bias', which holds infinity"),
        ({"running_var": torch.tensor([1.0, 1.0, -1e-3, 1.0])}, "'running_var', which holds negative variances"),
    ],
)
def test_what_a_network_cannot_compute_with_is_named_and_it_stays_as_it_was(
    change: dict[str, Tensor], text: str
) -> None:
    model = norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=re.escape(f"but got here with {text}: ")):
        load_weights(model, {**before, **change}, "here")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_is_taken_also_at_its_limit(dtype: torch.dtype) -> None:
    model = norm()
    # The sum of these is infinite, and none of them is.
    largest = torch.full((4,), min(torch.finfo(dtype).max, torch.finfo(torch.float32).max), dtype=dtype)
    for counter in (torch.tensor(3, dtype=torch.int32), torch.tensor(3, dtype=dtype)):
        load_weights(model, {**model.state_dict(), "weight": largest, "num_batches_tracked": counter}, "here")
        assert model.state_dict()["num_batches_tracked"] == 3
    assert torch.equal(model.weight.detach(), largest.float())


def test_many_are_counted() -> None:
    state = {name: torch.full_like(value, 3) * float("nan") for name, value in norm().state_dict().items()}
    state["num_batches_tracked"] = torch.tensor(0)
    with pytest.raises(InputError, match=r"'running_mean', which holds NaN and 1 more: use a checkpoint from before"):
        load_weights(norm(), state, "here")
