from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sparsity.small_net import SmallNet, config
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.sparsity import initial_masks, load_sparse, save_sparse

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@given(st.lists(st.integers(0, 9), max_size=4).map(tuple), st.floats(0, 1), st.sampled_from(TYPES), st.integers(0, 999))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_tensor_comes_back(
    tmp_path: Path, shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = 100 * torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
    path = tmp_path / "weights.safetensors"
    save_sparse(path, {"a": tensor.to(dtype)})
    [(name, loaded)] = load_sparse(path).items()
    assert name == "a"
    assert (loaded.dtype, loaded.shape) == (dtype, tensor.shape)
    assert bits(loaded) == bits(tensor.to(dtype))


def test_negative_zeros_and_nans_keep_their_bits(tmp_path: Path) -> None:
    tensor = torch.zeros(64)
    tensor[3:6] = torch.tensor([-0.0, torch.nan, -torch.inf])
    tensor[7] = torch.tensor(0x7FC00123, dtype=torch.int32).view(torch.float32)
    report = save_sparse(tmp_path / "w.safetensors", {"a": tensor})
    assert report.sparse_tensors == 1
    assert bits(load_sparse(tmp_path / "w.safetensors")["a"]) == bits(tensor)


def test_a_sparse_model_comes_back_and_its_size_is_told(tmp_path: Path) -> None:
    model = SmallNet(width=64)
    initial_masks(model, config(sparsity=0.9)).apply(model)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    state = model.state_dict()
    path = tmp_path / "folder" / "sparse.safetensors"
    report = save_sparse(path, state)
    loaded = load_sparse(path)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    SmallNet(width=64).load_state_dict(loaded)
    assert report.dense_bytes == sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert report.sparse_bytes == path.stat().st_size
    # 10 % of the values and 1 bit in 32 for each, and what is dense, and the header.
    assert 0.13 < report.ratio < 0.35
    assert report.tensors == len(state)
    # The four matrices, the zero shift and mean of the norm and its first count.
    assert report.sparse_tensors == 6


def test_a_dense_tensor_is_stored_as_it_is(tmp_path: Path) -> None:
    tensor = torch.ones(50, 50)
    report = save_sparse(tmp_path / "w.safetensors", {"a": tensor})
    assert report.sparse_tensors == 0
    assert report.dense_bytes < report.sparse_bytes < report.dense_bytes + 400


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    one, other = nn.Linear(30, 30), nn.Linear(30, 30)
    other.weight = one.weight
    model = nn.Sequential(one, other)
    report = save_sparse(tmp_path / "w.safetensors", model.state_dict())
    loaded = load_sparse(tmp_path / "w.safetensors")
    assert list(loaded) == list(model.state_dict())
    assert torch.equal(loaded["1.weight"], one.weight)
    assert report.tensors == 3
    assert report.sparse_bytes < 30 * 30 * 4 + 1000


def test_names_like_our_own_do_not_clash(tmp_path: Path) -> None:
    state = {"a": torch.zeros(99), "a/bits": torch.ones(2), "a/values": torch.ones(3)}
    with pytest.raises(InputError, match="Expected names without '/bits' or '/values' at the end, but got a/bits"):
        save_sparse(tmp_path / "w.safetensors", state)


def test_another_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"Expected a file of format widefield-sparse-1, but got .*a plain file"):
        load_sparse(tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"Expected a file of format widefield-sparse-1, but got .*none.safetensors"):
        load_sparse(tmp_path / "none.safetensors")
