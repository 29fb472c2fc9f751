from __future__ import annotations

import pytest
import torch

from widefield.sparsity.blanking import blank, open_bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inactive_elements_become_zero_whatever_they_were_and_others_stay_bit_for_bit(dtype: torch.dtype) -> None:
    values = torch.tensor([1.5, -2.0, float("nan"), float("inf"), -0.0, 3e-5, float("-inf"), -7.0], dtype=dtype)
    mask = torch.tensor([True, False, False, False, True, True, True, False])
    tensor = values.clone().reshape(2, 4).t()
    blank(tensor, open_bits(mask.reshape(2, 4).t(), tensor))
    after = tensor.t().reshape(-1)
    assert torch.equal(after[mask], values[mask])
    assert torch.signbit(after[4])
    assert bool((after[~mask] == 0).all())
    assert not bool(torch.signbit(after[~mask]).any())


def test_a_mask_serves_another_width_too() -> None:
    tensor = torch.ones(3, dtype=torch.float64)
    blank(tensor, open_bits(torch.tensor([True, False, True]), torch.ones(3)))
    assert tensor.tolist() == [1.0, 0.0, 1.0]


def test_parameters_that_require_a_gradient_are_blanked_in_place() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    version = weight._version
    with torch.no_grad():
        blank(weight, open_bits(torch.tensor([True, True, False, False]), weight))
    assert weight.tolist() == [1.0, 1.0, 0.0, 0.0]
    assert weight._version > version
