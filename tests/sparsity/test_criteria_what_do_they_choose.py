from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsity.small_net import config
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from widefield._core.errors import InputError
from widefield.sparsity.criteria import (
    draw,
    grow_gradient,
    grow_momentum,
    grow_momentum_neuron,
    grow_random,
    lowest,
    prune_magnitude,
    prune_set,
)
from widefield.sparsity.schedule import UpdateSchedule
from widefield.sparsity.topology import exchange


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
@settings(deadline=None)
def test_the_lowest_are_those_of_a_stable_sort(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    chosen = lowest(torch.tensor(values, dtype=torch.float32), count)
    expected = sorted(range(len(values)), key=lambda index: values[index])[:count]
    assert chosen.nonzero().flatten().tolist() == sorted(expected)


def test_nan_comes_last() -> None:
    assert lowest(torch.tensor([torch.nan, 2.0, torch.inf, 1.0]), 2).tolist() == [False, True, False, True]
    assert lowest(torch.full((4,), torch.nan), 3).tolist() == [True, True, True, False]


def test_magnitude_drops_the_smallest_active_weights() -> None:
    weight = torch.tensor([[0.1, -0.5, 0.0], [-0.2, 3.0, 0.3]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    assert prune_magnitude(weight, mask, 2).tolist() == [[True, False, False], [True, False, False]]


def test_gradient_and_momentum_grow_the_largest_inactive_ones() -> None:
    evidence = torch.tensor([9.0, -4.0, 1.0, 2.0])
    mask = torch.tensor([True, False, False, False])
    for grow in (grow_gradient, grow_momentum):
        assert grow(evidence, mask, 2, evidence).tolist() == [False, True, False, True]


def test_a_random_growth_depends_on_seed_change_and_parameter_alone() -> None:
    mask = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) < 0.5
    first = grow_random(mask, mask, 50, draw(0, 1, 2))
    assert int(first.sum()) == 50
    assert not bool((first & mask).any())
    torch.rand(3)
    assert torch.equal(first, grow_random(mask, mask, 50, draw(0, 1, 2)))
    others = [grow_random(mask, mask, 50, draw(*key)) for key in ((1, 1, 2), (0, 2, 2), (0, 1, 1), (0, 12, 0))]
    assert not any(torch.equal(first, other) for other in others)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.floats(0, 1),
    st.integers(0, 64).map(lambda part: part / 64),
    st.sampled_from(["magnitude", "set"]),
    st.sampled_from(["random", "gradient", "momentum", "momentum_neuron"]),
    st.integers(0, 99),
)
@settings(deadline=None)
def test_an_exchange_keeps_the_count(
    shape: tuple[int, int], density: float, fraction: float, prune: Any, grow: Any, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, evidence = torch.randn(2, *shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < density
    active = int(mask.sum())
    changed = exchange(weight, mask, fraction, prune=prune, grow=grow, generator=draw(seed, 1, 0), evidence=evidence)
    assert int(changed.mask.sum()) == active
    assert torch.equal(changed.reset, changed.mask ^ mask)
    dropped = math.ceil(fraction * active)
    # What was dropped may be among what is grown.
    assert int(changed.reset.sum()) <= 2 * min(dropped, mask.numel() - active)
    if prune == "magnitude":
        # The largest survive.
        largest = (weight.abs() * mask).flatten().argsort(descending=True)[: active - dropped]
        assert bool(changed.mask.flatten()[largest].all())


def test_what_is_dropped_may_come_back_at_any_density() -> None:
    mask = torch.arange(100).view(10, 10) > 0
    weight = torch.arange(100.0).view(10, 10)
    changed = exchange(weight, mask, 0.5, prune="magnitude", grow="random", generator=draw(0, 1, 0))
    # 50 dropped, and 50 of the 51 zeros grown.
    assert int(changed.reset.sum()) == 2
    assert bool(changed.mask[0, 0])


def test_set_drops_the_same_share_of_both_signs_next_to_zero() -> None:
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.4, 9.0, 8.0], [-5.0, -6.0, -7.0, -0.05, 0.0, 0.01]])
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    # Of 6 positive and 4 negative ones a half; by magnitude alone only -0.05 would go.
    dropped = prune_set(weight, mask, 5)
    assert dropped.tolist() == [[True] * 3 + [False] * 3, [True, False, False, True, False, False]]
    assert int(prune_set(weight, mask, 10).sum()) == 10
    assert int(prune_set(weight, mask, 0).sum()) == 0
    nothing = torch.zeros_like(mask)
    assert int(prune_set(weight, nothing, 0).sum()) == 0
    # A zero counts as positive, and is the smallest.
    assert prune_set(torch.tensor([0.0, 1.0, -1.0]), torch.ones(3, dtype=torch.bool), 1).tolist() == [
        True,
        False,
        False,
    ]


def neurons_by_definition(mask: Tensor, count: int, momentum: Tensor) -> list[int]:
    """Places to grow of each neuron, as the published code divides them: rounded down, at most those that are free."""
    scores = momentum.abs().reshape(len(mask), -1)
    share = (scores.mean(1) / scores.mean(1).sum()).tolist()
    return [
        min(math.floor(part * count), int((~row).sum()))
        for part, row in zip(share, mask.reshape(len(mask), -1), strict=True)
    ]


@given(st.integers(1, 6), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
@settings(deadline=None)
def test_neurons_share_growth_by_their_mean_momentum(
    neurons: int, inputs: int, density: float, part: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    momentum = torch.randn(neurons, inputs, generator=generator) * torch.rand(neurons, 1, generator=generator)
    mask = torch.rand(neurons, inputs, generator=generator) < density
    count = int(part * int((~mask).sum()))
    grown = grow_momentum_neuron(momentum, mask, count, momentum)
    assert int(grown.sum()) == count
    assert not bool((grown & mask).any())
    for index, least in enumerate(neurons_by_definition(mask, count, momentum)):
        here = grown[index]
        assert int(here.sum()) >= least
        rest = momentum[index].abs()[~mask[index] & ~here]
        if bool(here.any()) and len(rest):
            assert momentum[index].abs()[here].min() >= rest.max()
    by_filter = grow_momentum_neuron(
        momentum, mask.view(neurons, inputs, 1, 1), count, momentum.view(neurons, -1, 1, 1)
    )
    assert torch.equal(by_filter.view(neurons, inputs), grown)


def test_neurons_with_no_momentum_and_places_that_are_not_numbers_come_last() -> None:
    momentum = torch.tensor([[4.0, 3.0, 2.0], [0.0, 0.0, 0.0], [torch.nan, 1.0, 0.5]])
    mask = torch.tensor([[True, False, False], [False] * 3, [False, False, True]])
    assert grow_momentum_neuron(momentum, mask, 3, momentum).tolist() == [
        [False, True, True],
        [False, False, False],
        [False, True, False],
    ]
    assert int(grow_momentum_neuron(momentum, mask, 7, momentum).sum()) == 7
    assert grow_momentum_neuron(mask[0], mask[0], 1, torch.tensor([1.0, 2.0, 3.0])).tolist() == [False, False, True]


def test_a_dense_tensor_stays_as_it_is() -> None:
    mask = torch.ones(3, 3, dtype=torch.bool)
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    changed = exchange(weight, mask, 0.5, prune="magnitude", grow="random", generator=draw(0, 1, 0))
    assert torch.equal(changed.mask, mask)
    assert not bool(changed.reset.any())


def test_a_product_a_hair_above_an_integer_is_the_integer() -> None:
    assert 0.07 * 100 > 7
    mask = (torch.arange(200) < 100).view(20, 10)
    weight = torch.arange(1.0, 201).view(20, 10)
    changed = exchange(weight, mask, 0.07, prune="magnitude", grow="gradient", generator=draw(0, 1, 0), evidence=weight)
    assert changed.reset.flatten().nonzero().flatten().tolist() == [*range(7), *range(193, 200)]


def test_the_cosine_is_that_of_torch() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    reference = CosineAnnealingLR(optimizer, T_max=50, eta_min=0.005)
    schedule = UpdateSchedule(config=config(prune_fraction=0.5), total_steps=50)
    for step in range(51):
        assert schedule.fraction(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        reference.step()
    constant = UpdateSchedule(config=config(prune_fraction=0.5, schedule="constant"), total_steps=50)
    assert {constant.fraction(step) for step in range(51)} == {0.5}


def test_masks_change_at_every_interval_up_to_the_last_one() -> None:
    def steps(total: int, **changes: object) -> list[int]:
        schedule = UpdateSchedule(config=config(**changes), total_steps=total)
        found = [step for step in range(total + 1) if schedule.is_update(step)]
        assert [schedule.updates_before(step) for step in found] == list(range(1, len(found) + 1))
        return found

    assert steps(10) == [3, 6, 9]
    assert steps(9) == [3, 6]
    assert steps(12, last_update_share=0.75) == [3, 6, 9]
    assert steps(12, update_every=None) == []


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(InputError, match="Expected sparsity from 0 to 1, but got 40"):
        config(sparsity=40)
    with pytest.raises(InputError, match="Expected at least one step between two changes of the masks"):
        config(update_every=0)
    with pytest.raises(InputError, match="Expected at least one batch for snip, but got 0"):
        config(snip_batches=0)
    with pytest.raises(InputError, match="Expected a density_file for the allocation 'file' and for no other"):
        config(allocation="file")
    with pytest.raises(InputError, match="Expected a run of at least one step, but got 0"):
        UpdateSchedule(config=config(), total_steps=0)
