from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity.small_net import SPARSE, SmallNet
from torch import Tensor

from widefield._core.errors import InputError
from widefield.sparsity import Masks
from widefield.sparsity.packing import pack_bits, packed_size, unpack_bits

SHAPE = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)


def parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if name in SPARSE}


def masks_of(model: torch.nn.Module, density: float = 0.5, seed: int = 0) -> Masks:
    found = parameters(model)
    return Masks.drawn(found, {name: int(density * tensor.numel()) for name, tensor in found.items()}, seed)


@given(SHAPE, st.integers(0, 2**32))
@settings(deadline=None)
def test_packed_bits_come_back(shape: tuple[int, ...], seed: int) -> None:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(values)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_size(values.numel()) == -(-values.numel() // 8)
    assert torch.equal(unpack_bits(packed, values.shape), values)


def test_bits_lie_where_numpy_puts_them_in_little_order() -> None:
    values = torch.rand(3, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    numpy = pytest.importorskip("numpy")
    assert pack_bits(values).tolist() == numpy.packbits(values.numpy(), bitorder="little").tolist()


@given(SHAPE, st.floats(0, 1), st.integers(0, 9))
@settings(deadline=None)
def test_a_draw_has_exactly_the_count(shape: tuple[int, ...], density: float, seed: int) -> None:
    tensor = torch.empty(shape)
    count = round(density * tensor.numel())
    masks = Masks.drawn({"a": tensor, "b": tensor}, {"a": count, "b": count}, seed)
    assert masks.counts == {"a": count, "b": count}
    assert Masks.drawn({"a": tensor, "b": tensor}, {"a": count, "b": count}, seed).equals(masks)


def test_draws_differ_between_parameters_and_seeds_and_are_even() -> None:
    tensor = torch.empty(100, 100)
    masks = Masks.drawn({"a": tensor, "b": tensor}, {"a": 5000, "b": 5000}, 0)
    overlap = int((masks["a"] & masks["b"]).sum())
    assert 2300 < overlap < 2700
    assert not Masks.drawn({"a": tensor}, {"a": 5000}, 1).equals(Masks({"a": masks["a"]}))
    # 50 of 100 in each row and column on average, with a deviation of 5.
    assert 25 < masks["a"].sum(0).min() <= masks["a"].sum(0).max() < 75
    assert 25 < masks["a"].sum(1).min() <= masks["a"].sum(1).max() < 75


def test_applied_masks_leave_zeros_and_nothing_else() -> None:
    model = SmallNet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = masks_of(model)
    assert masks.violations(model) == {name: int((~mask).sum()) for name, mask in masks.items()}
    masks.apply(model)
    assert masks.violations(model) == {}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, torch.where(masks[name], before[name], 0) if name in masks else before[name])


def test_a_weight_that_is_nan_is_masked_too() -> None:
    model = SmallNet()
    masks = masks_of(model)
    model.fc1.weight.data.fill_(torch.nan)
    masks.apply(model)
    assert masks.violations(model) == {}


def test_masks_can_be_read_off_weights() -> None:
    model = SmallNet()
    masks = masks_of(model)
    masks.apply(model)
    found = Masks.of_nonzeros(parameters(model))
    assert found.equals(masks)
    assert found.checksum == masks.checksum
    assert (found.nonzeros, found.size) == (sum(masks.counts.values()), sum(t.numel() for t in masks.values()))


def test_the_state_comes_back_bit_for_bit() -> None:
    model = SmallNet()
    masks, other = masks_of(model, seed=3), masks_of(model, seed=4)
    assert masks.checksum != other.checksum
    other.load_state_dict(masks.state_dict())
    assert other.equals(masks)
    assert sum(bits.numel() for bits in masks.state_dict().values()) <= masks.size / 8 + len(masks)


def test_what_does_not_fit_is_refused() -> None:
    model = SmallNet()
    masks = masks_of(model)
    state = masks.state_dict()
    with pytest.raises(InputError, match="Expected a mask for each sparse parameter and for no other, but got 1 names"):
        masks.load_state_dict({name: bits for name, bits in state.items() if name != "fc1.weight"})
    with pytest.raises(InputError, match=r"Expected 32 bytes for the mask of fc1.weight"):
        masks.load_state_dict({**state, "fc1.weight": state["fc1.weight"][:-1]})
    with pytest.raises(InputError, match=r"Expected stem.weight of shape \(8, 3, 3, 3\), but got \(16, 3, 3, 3\)"):
        masks.apply(SmallNet(width=16))
    with pytest.raises(InputError, match="Expected a tensor for each mask, but got 1 names on one side only"):
        masks.apply_to_tensors({name: tensor for name, tensor in parameters(model).items() if name != "fc1.weight"})
    with pytest.raises(InputError, match=r"Expected masks of type bool, but got torch.float32 for a"):
        Masks({"a": torch.ones(3)})
    with pytest.raises(InputError, match="Expected a number from 0 to 6 of weights to keep in a, but got 7"):
        Masks.drawn({"a": torch.empty(2, 3)}, {"a": 7}, 0)
