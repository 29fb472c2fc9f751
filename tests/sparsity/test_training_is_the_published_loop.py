"""Sparse training against the published loop, restated slowly: only which zeros are drawn at random is taken over."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from sparsity.small_net import SPARSE, Run, SmallNet, adamw, batches, config, loss_of, sgd
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from widefield.sparsity import SparseTraining, SparsityConfig, initial_masks
from widefield.sparsity.criteria import draw, grow_random

STEPS = 14
DECAY = 0.9


class PublishedLoop:
    """A mask of ones and zeros by which weights are multiplied, and an average that is multiplied too.

    Facts of the authors' code: a step multiplies the weights and SGD's momentum, and nothing of AdamW's; the prune rate
    is advanced before a change; what is dropped is cut from the mask alone, so that what comes back at once has kept
    its value; the average of an active weight that is zero takes the weight.
    """

    def __init__(self, model: SmallNet, make: Any, settings: SparsityConfig) -> None:
        self.model, self.settings = model, settings
        self.masks = {name: mask.double() for name, mask in initial_masks(model, settings).items()}
        self.optimizer = make(model)
        self.rate = CosineAnnealingLR(
            torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.prune_fraction), STEPS, eta_min=0.005
        )
        self.steps = self.returned = 0
        self.multiply()
        self.average = {name: model.get_parameter(name).detach().clone() for name in SPARSE}

    def multiply(self) -> None:
        for name, mask in self.masks.items():
            parameter = self.model.get_parameter(name)
            parameter.data = parameter.data * mask
            state = self.optimizer.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"] = state["momentum_buffer"] * mask

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model, batch).backward()
        self.optimizer.step()
        self.multiply()
        self.rate.optimizer.step()
        self.rate.step()
        self.steps += 1
        if self.settings.update_every is not None and self.steps % self.settings.update_every == 0:
            self.change()
        for name, mask in self.masks.items():
            weight, mean = self.model.get_parameter(name).detach(), self.average[name]
            is_new = (mean == 0) & (mask == 1)
            self.average[name] = (DECAY * mean + (1 - DECAY) * weight) * mask + is_new.double() * DECAY * weight

    def change(self) -> None:
        fraction = self.rate.get_last_lr()[0]
        for index, (name, mask) in enumerate(self.masks.items()):
            weight = self.model.get_parameter(name)
            removed = math.ceil(round(fraction * int(mask.sum()), 9))
            lowest = (weight.detach().abs() + 1e9 * (mask == 0)).flatten().sort(stable=True).indices[:removed]
            mask.view(-1)[lowest] = 0
            if self.settings.grow == "random":
                generator = draw(self.settings.seed, self.steps // self.settings.update_every, index)
                mask[grow_random(weight, mask == 1, removed, generator)] = 1
                self.returned += int(mask.view(-1)[lowest].sum())
                continue
            state: Any = self.optimizer.state[weight]
            scores: Any = weight.grad
            if self.settings.grow == "momentum":
                scores = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)
            order = (scores * (mask == 0)).abs().flatten().sort(descending=True, stable=True).indices
            mask.view(-1)[order[:removed]] = 1
        self.multiply()


@pytest.mark.parametrize(
    ("make", "grow"), [(adamw, "random"), (adamw, "gradient"), (adamw, "momentum"), (sgd, "random"), (sgd, "gradient")]
)
def test_weights_moments_masks_and_average_are_those_of_the_published_loop(make: Any, grow: str) -> None:
    settings = config(grow=grow, prune_fraction=0.6, sparsity=0.4)
    published = PublishedLoop(SmallNet().double(), make, settings)
    model = SmallNet().double()
    optimizer = make(model)
    sparse = SparseTraining(model, optimizer, settings, total_steps=STEPS)
    average = copy.deepcopy(model)
    sparse.follow(average)
    run = Run(model, optimizer, sparse)
    data = batches(STEPS, dtype=torch.float64)
    for step in run.train(data):
        with torch.no_grad():
            for name in SPARSE:
                average.get_parameter(name).lerp_(model.get_parameter(name), 1 - DECAY)
        published.step(data[step - 1])
        for name in SPARSE:
            mask = published.masks[name] == 1
            assert torch.equal(sparse.masks[name], mask), (step, name)
            ours, theirs = model.get_parameter(name), published.model.get_parameter(name)
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(average.get_parameter(name), published.average[name], rtol=1e-9, atol=1e-12)
            for key, value in published.optimizer.state[theirs].items():
                torch.testing.assert_close(optimizer.state[ours][key], value, rtol=1e-9, atol=1e-12)
    # Those that come back at once, which keep their values, are among what was compared.
    assert grow != "random" or published.returned > 50


def first_step_of_the_grown(moments: Any) -> Tensor:
    """Return the first steps of freshly grown weights under a constant gradient, in learning rates."""
    model = nn.Linear(20, 20, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    settings = SparsityConfig(moments=moments, update_every=5000, schedule="constant")
    sparse = SparseTraining(model, optimizer, settings, total_steps=6000)
    before = sparse.masks["weight"].clone()
    model.weight.grad = torch.ones_like(model.weight)
    for _ in range(5001):
        optimizer.step()
    return model.weight.detach()[sparse.masks["weight"] & ~before].abs() / 1e-3


def test_a_grown_weight_goes_on_with_adams_moments_unless_they_are_blanked() -> None:
    kept, blanked = first_step_of_the_grown("kept"), first_step_of_the_grown("blanked")
    assert min(len(kept), len(blanked)) > 50
    torch.testing.assert_close(kept, torch.ones_like(kept), rtol=1e-4, atol=0)
    # 0.1 of the gradient over the root of 0.001 of its square.
    torch.testing.assert_close(blanked, torch.full_like(blanked, 10**0.5), rtol=0.01, atol=0)


@pytest.mark.parametrize("moments", ["kept", "blanked"])
def test_slow_weights_are_no_moments(moments: Any) -> None:
    from timm.optim import Lookahead

    model = SmallNet()
    optimizer = Lookahead(adamw(model), k=2)
    run = Run(model, optimizer, SparseTraining(model, optimizer, config(moments=moments), total_steps=STEPS))
    assert run.sparse is not None
    for _ in run.train(batches(STEPS)):
        assert run.sparse.masks.violations(model) == {}


def test_the_average_takes_what_has_grown_at_once_and_drops_what_was_dropped() -> None:
    run = Run.begin(config(prune_fraction=0.5), STEPS)
    sparse = run.sparse
    assert sparse is not None
    run.average = copy.deepcopy(run.model)
    sparse.follow(run.average)
    before = {name: mask.clone() for name, mask in sparse.masks.items()}
    for step in run.train(batches(4)):
        if step < 4:
            continue
        for name, mask in sparse.masks.items():
            grown = mask & ~before[name]
            weight, mean = run.model.get_parameter(name).detach(), run.average.get_parameter(name)
            assert bool(weight[grown].any())
            torch.testing.assert_close(mean[grown], weight[grown], rtol=0, atol=0)
            assert not bool(mean[~mask].any())
            assert not torch.equal(mean[mask & before[name]], weight[mask & before[name]])
