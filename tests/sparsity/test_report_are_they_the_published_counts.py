from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from sparsity.small_net import SPARSE, SmallNet, config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import widefield.models  # noqa: F401 - registers the models
from widefield._core.errors import InputError
from widefield.sparsity import Masks, initial_masks, sparsity_report, uniform
from widefield.sparsity.selection import matrices, select_parameters


def test_slak_t_at_40_percent_has_the_published_parameters_and_macs() -> None:
    """SLaK (Liu et al., 2023), table 1: 30M parameters, 5.0 GMACs; 8.70 GMACs and 50,703,838 parameters when dense."""
    with torch.device("meta"):
        model = timm.create_model("slak_t")
    found = select_parameters(model, matrices)
    counts = uniform({name: tuple(parameter.shape) for name, parameter in found.items()}, 0.6)
    masks = Masks(
        {
            name: (torch.arange(parameter.numel()) < counts[name]).view(parameter.shape)
            for name, parameter in found.items()
        }
    )
    report = sparsity_report(model, torch.empty(1, 3, 224, 224), masks)
    assert report.parameters == 50_703_838
    assert abs(report.nonzeros - 30.5e6) < 0.3e6
    assert report.nonzeros == report.parameters - masks.size + masks.nonzeros
    assert report.other_macs == 0
    assert round(report.macs / 1e9, 2) == 8.70
    assert round(report.nonzero_macs / 1e9, 2) == 5.22


def test_macs_add_up_to_those_of_torchs_counter() -> None:
    for variant in ("slak_a", "replknet_nano", "unireplknet_a", "vit_tiny_patch16_224", "mobilenetv2_lk"):
        with torch.device("meta"):
            model = timm.create_model(variant).eval()
            example = torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(example)
        report = sparsity_report(model, example, _nothing(model))
        assert report.macs == counter.get_total_flops() // 2, variant


def _nothing(model: nn.Module) -> dict[str, Tensor]:
    name, parameter = next(iter(model.named_parameters()))
    return {name: torch.ones(parameter.shape, dtype=torch.bool)}


def test_macs_are_told_for_each_parameter() -> None:
    model = SmallNet()
    report = sparsity_report(model, torch.zeros(1, 3, 8, 8))
    macs = {row.name: row.macs for row in report.rows if row.macs}
    assert macs == {
        "stem.weight": 64 * 8 * 27,
        "stripe.weight": 64 * 8 * 27,
        "fc1.weight": 8 * 32,
        "fc2.weight": 32 * 5,
    }
    assert report.other_macs == 0


def test_zeros_count_in_matrices_alone() -> None:
    model = SmallNet()
    total = sum(parameter.numel() for parameter in model.parameters())
    nn.init.zeros_(model.fc1.bias)
    assert sparsity_report(model).nonzeros == total
    masks = initial_masks(model, config())
    active_zero = masks["fc1.weight"].nonzero()[0]
    masks.apply(model)
    model.fc1.weight.data[tuple(active_zero)] = 0
    expected = total - masks.size + masks.nonzeros
    assert sparsity_report(model, masks=masks).nonzeros == expected
    assert sparsity_report(model).nonzeros == expected - 1
    row = next(row for row in sparsity_report(model, torch.zeros(1, 3, 8, 8), masks).rows if row.name == "fc1.weight")
    assert (row.parameters, row.nonzeros, row.macs, row.nonzero_macs) == (256, 102, 256, 102)
    assert row.density == 102 / 256


class Functional(nn.Module):
    """Multiplies by a parameter without a module, by a product of two parameters, and two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.direct = nn.Parameter(torch.ones(4, 6))
        self.left, self.right = nn.Parameter(torch.ones(5, 2)), nn.Parameter(torch.ones(2, 4))
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(F.linear(F.linear(x, self.direct), self.left @ self.right))
        return y.transpose(-1, -2) @ y


def test_functions_are_counted_and_what_no_parameter_owns_is_other() -> None:
    model = Functional()
    report = sparsity_report(model, torch.ones(3, 6))
    macs = {row.name: row.macs for row in report.rows}
    assert macs == {"direct": 3 * 4 * 6, "left": 5 * 2 * 4, "right": 0}
    assert report.other_macs == 3 * 5 * 4 + 5 * 3 * 5
    assert model.training
    assert model.drop.training


class LooksAtValues(SmallNet):
    """Cannot run on the meta device."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) >= 0 else -x)


def test_a_model_that_looks_at_values_is_really_run() -> None:
    plain, looking = (
        sparsity_report(SmallNet(), torch.ones(1, 3, 8, 8)),
        sparsity_report(LooksAtValues(), torch.ones(1, 3, 8, 8)),
    )
    assert plain == looking


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(InputError, match="Expected masks of this model, but got one for other of shape"):
        sparsity_report(SmallNet(), masks={"other": torch.ones(2, dtype=torch.bool)})
    with torch.device("meta"):
        model = SmallNet()
    with pytest.raises(InputError, match="Expected a model with values, or masks"):
        sparsity_report(model)
    assert list(SPARSE) == [row.name for row in sparsity_report(SmallNet()).rows if len(row.shape) > 1]
