from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sparsity.small_net import Run, SmallNet, batches, config
from torch import nn

from widefield._core.errors import InputError
from widefield.sparsity import SparsityConfig, initial_masks


class Uneven(nn.Module):
    """One tensor of which all but a few weights count far more than those of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.strong, self.weak = nn.Linear(20, 10, bias=False), nn.Linear(20, 10, bias=False)
        with torch.no_grad():
            self.strong.weight.fill_(1.0)
            self.strong.weight[0, :1] = 1e-9
            self.weak.weight.copy_(torch.linspace(1e-3, 2e-3, 200).view(10, 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.strong(x) + self.weak(x)


def snip_masks(**changes: Any):
    settings = SparsityConfig(**{"allocation": "snip", "sparsity": 0.25, **changes})
    return initial_masks(Uneven(), settings, batches=[torch.ones(1, 20)], loss=lambda net, x: net(x).sum())


def test_a_tensor_of_99_percent_becomes_dense_and_the_whole_a_bit_denser() -> None:
    exact = snip_masks(dense_from=1.0)
    assert exact.counts == {"strong.weight": 199, "weak.weight": 101}
    published = snip_masks()
    assert published.counts == {"strong.weight": 200, "weak.weight": 101}
    assert bool(published["strong.weight"].all())
    assert published.density == 301 / 400
    assert torch.equal(published["weak.weight"], exact["weak.weight"])


@pytest.mark.parametrize("allocation", ["uniform", "erk", "file", "nonzero"])
def test_it_holds_for_every_allocation(allocation: Any, tmp_path: Path) -> None:
    model = SmallNet()
    (tmp_path / "d.json").write_text('{"fc1.weight": 0.9375, "fc2.weight": 0.5}')
    with torch.no_grad():
        model.fc1.weight.view(-1)[:16] = 0
        model.fc2.weight.view(-1)[:80] = 0
    options = {"density_file": tmp_path / "d.json"} if allocation == "file" else {}
    changes = {"allocation": allocation, "pattern": "^fc", "sparsity": 0.45, **options}
    loose = initial_masks(model, config(dense_from=1.0, **changes))
    densities = {name: count / loose[name].numel() for name, count in loose.counts.items()}
    densest = max(densities, key=lambda name: densities[name])
    assert densities[densest] < 1
    tight = initial_masks(model, config(dense_from=densities[densest], **changes))
    assert bool(tight[densest].all())
    above = initial_masks(model, config(dense_from=densities[densest] + 1e-3, **changes))
    assert above.counts == loose.counts


@pytest.mark.parametrize("grow", ["random", "gradient", "momentum", "momentum_neuron"])
def test_its_mask_never_changes_and_its_weights_are_all_trained(grow: Any) -> None:
    run = Run.begin(config(grow=grow, sparsity=0.3, allocation="erk", dense_from=0.85, update_every=1), 8)
    sparse = run.sparse
    assert sparse is not None
    dense = [name for name, count in sparse.masks.counts.items() if count == sparse.masks[name].numel()]
    assert 0 < len(dense) < len(sparse.masks)
    before = {name: run.model.get_parameter(name).detach().clone() for name in dense}
    for _ in run.train(batches(8)):
        for name in dense:
            assert bool(sparse.masks[name].all())
            weight = run.model.get_parameter(name)
            assert int((weight != 0).sum()) == weight.numel()
    assert all(bool((run.model.get_parameter(name) != value).any()) for name, value in before.items())


def test_a_network_that_would_be_dense_unasked_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"Expected a tensor of a density below 0\.99, from which tensors are dense, but got none by the "
        r"allocation 'uniform': raise sparsity or dense_from",
    ):
        initial_masks(SmallNet(), config(sparsity=0.005))
    assert initial_masks(SmallNet(), config(sparsity=0.0)).density == 1
    with pytest.raises(InputError, match="Expected dense_from above 0 and at most 1, but got 0: give the density from"):
        config(dense_from=0.0)
