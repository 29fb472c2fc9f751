from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity.small_net import SPARSE, SmallNet, batches, loss_of
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.sparsity import erdos_renyi_kernel, from_file, snip, uniform

if TYPE_CHECKING:
    from pathlib import Path

SIDE = st.integers(1, 40)
SHAPES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.one_of(st.tuples(SIDE, SIDE), st.tuples(SIDE, st.just(1), st.integers(1, 13), st.integers(1, 13))),
    min_size=1,
    max_size=6,
)


@given(SHAPES, st.floats(0, 1))
@settings(deadline=None)
def test_uniform_counts_are_within_one_and_add_up(shapes: dict[str, tuple[int, ...]], density: float) -> None:
    counts = uniform(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert list(counts) == list(shapes)
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert all(abs(counts[name] - density * size) <= 1 and 0 <= counts[name] <= size for name, size in sizes.items())


@given(SHAPES, st.floats(0, 1))
@settings(deadline=None)
def test_erk_counts_follow_the_law_and_add_up(shapes: dict[str, tuple[int, ...]], density: float) -> None:
    counts = erdos_renyi_kernel(shapes, density)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    assert all(0 <= counts[name] <= size for name, size in sizes.items())
    thin = [name for name, size in sizes.items() if counts[name] < size - 1]
    for one in thin:
        for other in thin:
            # Counts go with the sums of the sides, up to the rounding of both.
            assert abs(counts[one] * sum(shapes[other]) - counts[other] * sum(shapes[one])) <= sum(shapes[one]) + sum(
                shapes[other]
            )


def test_erk_keeps_a_tensor_dense_whose_share_would_pass_one() -> None:
    counts = erdos_renyi_kernel({"small": (4, 1, 5, 5), "large": (100, 100)}, 0.5)
    # 0.5 * 10100 = 5050 of which the small one takes all of its 100.
    assert counts == {"small": 100, "large": 4950}


def test_snip_counts_the_largest_products_of_weight_and_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    model[1].weight.data = torch.tensor([[1.0, 10.0]])
    data = [torch.eye(3)[index : index + 1] for index in range(3)]
    counts = snip(model, data, lambda net, batch: net(batch).sum(), 0.5)
    # |w dL/dw|, summed over the batches: first layer [[1, 2, 3], [10, 10, 10]], second layer [6, 30].
    assert counts == {"0.weight": 3, "1.weight": 1}
    counts = snip(model, data, lambda net, batch: net(batch).sum(), 0.625)
    assert counts == {"0.weight": 3, "1.weight": 2}


def test_snip_spreads_evenly_what_no_gradient_ranks() -> None:
    class Shut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.open, self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 10), nn.Linear(10, 4)
            self.gamma = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            x = self.open(x)
            return x + self.gamma * self.last(self.first(x))

    data = [torch.randn(3, 5, generator=torch.Generator().manual_seed(1))]
    counts = snip(Shut(), data, lambda net, batch: net(batch).square().sum(), 0.6)
    # 60 of 100 weights: the 20 that are open, and half of the others.
    assert counts == {"open.weight": 20, "first.weight": 20, "last.weight": 20}


def test_snip_leaves_model_and_random_state_as_they_were() -> None:
    model = SmallNet().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    counts = snip(model, batches(2), loss_of, 0.3)
    assert list(counts) == list(SPARSE)
    assert sum(counts.values()) == round(0.3 * sum(dict(model.named_parameters())[name].numel() for name in SPARSE))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_snip_says_what_it_lacks() -> None:
    with pytest.raises(InputError, match="Expected batches for snip, but got none"):
        snip(SmallNet(), [], loss_of, 0.5)
    with pytest.raises(InputError, match="Expected finite gradients for snip"):
        snip(SmallNet(), batches(1), lambda net, batch: loss_of(net, batch) * 0, 0.5)


def test_a_file_gives_each_density(tmp_path: Path) -> None:
    path = tmp_path / "density.json"
    path.write_text(json.dumps({"a": 0.25, "b": 1}))
    assert from_file(path, {"a": (10, 10), "b": (3, 3)}) == {"a": 25, "b": 9}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 0.5}', "1 names on one side only, such as b"),
        ('{"a": 0.5, "b": 0.5, "c": 0.5}', "1 names on one side only, such as c"),
        ('{"a": 0.5, "b": 1.5}', "Expected densities from 0 to 1 in .*, but got 1.5 for b"),
        ('{"a": 0.5, "b": true}', "but got True for b"),
        ("[1]", "Expected a JSON object of densities in .*, but got a list"),
        ("{", "Expected a JSON object of densities"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "density.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        from_file(path, {"a": (2, 2), "b": (2, 2)})


def test_a_percentage_is_refused() -> None:
    with pytest.raises(InputError, match="Expected a density from 0 to 1, but got 60"):
        uniform({"a": (2, 2)}, 60)
