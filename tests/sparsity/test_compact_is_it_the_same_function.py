from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support.random_statistics import randomise
from torch import Tensor, nn

import widefield.models  # noqa: F401 - registers the models
from widefield._core.errors import InputError
from widefield.reparam import fold
from widefield.sparsity import Masks, compact, fit_shapes
from widefield.sparsity.hidden_channels import hidden_pairs
from widefield.sparsity.kernel_borders import croppable

VARIANTS = ("slak_a", "replknet_nano", "unireplknet_a", "convnext_lk_t", "mobilenetv2_lk", "convnext_atto")
SMALL: dict[str, Any] = {"channels": (16, 24, 32, 40), "depths": (1, 1, 2, 1)}
OPTIONS: dict[str, dict[str, Any]] = {"slak_a": SMALL, "convnext_lk_t": SMALL}


def linear(module: Any) -> nn.Linear:
    """Return it by the type that has what is needed of it here."""
    return module


def random_weights(model: nn.Module) -> nn.Module:
    """Weights with which every part of the network matters to the output."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fan = max(parameter[0].numel(), 1) if parameter.dim() > 1 else 4
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan**0.5
    return randomise(model.double())


def emptied(model: nn.Module) -> tuple[int, int]:
    """Empty hidden channels and the borders of kernels, as a structured sparse training would."""
    pairs = hidden_pairs(model)
    for pair in pairs:
        first, second = (linear(model.get_submodule(name)) for name in (pair.first, pair.second))
        first.weight.data[::3] = 0
        second.weight.data[:, 1::4] = 0
    kernels = [conv for conv in croppable(model).values() if conv.groups > 1 and max(conv.kernel_size) > 5]
    for conv in kernels:
        long = conv.weight.data.movedim(2 if conv.kernel_size[0] > 5 else 3, 0)
        long[:2] = 0
        long[-3:] = 0
    return len(pairs), len(kernels)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_taken_out_of_a_network_changes_rounding_alone(variant: str) -> None:
    model = random_weights(timm.create_model(variant, **OPTIONS.get(variant, {})))
    fold(model)
    pairs, kernels = emptied(model)
    assert pairs
    assert kernels
    original = copy.deepcopy(model)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    report = compact(model, x, runs=1)
    assert len(report.channels) == pairs
    assert len(report.kernels) == kernels
    # At another size of image too.
    wide = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        for images in (x, wide):
            expected = original(images)
            assert bool(expected.any())
            torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert report.relative_error < 1e-12
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    assert report.parameters_after < report.parameters_before
    assert report.macs_after < report.macs_before
    assert f"{report.parameters_after:,} parameters" in report.summary

    fresh = timm.create_model(variant, **OPTIONS.get(variant, {})).double().eval()
    fold(fresh)
    fit_shapes(fresh, model.state_dict())
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(x), model(x))


class Mlp(nn.Module):
    """Two linear layers, with or without something between them that makes a channel more than itself."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 6, bias=False), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        if self.kind == "plain":
            return self.fc2(self.drop(F.gelu(y, approximate="tanh")))
        if self.kind == "norm":
            return self.fc2(F.relu(self.norm(y)))
        if self.kind == "read along":
            return self.fc2(F.relu(y)) + y.sum(-1, keepdim=True)
        if self.kind == "weight read":
            return self.fc2(F.relu(y)) + F.linear(x, self.fc1.weight).sum()
        if self.kind == "twice":
            return self.fc2(F.relu(y)) + self.fc2(F.relu(self.fc1(x + 1)))
        if self.kind == "value":
            return self.fc2(F.relu(y)) if float(x.sum()) > 0 else y[..., :6]
        return self.fc2(F.softmax(y, -1))


def dead(model: Any) -> Any:
    model.fc1.weight.data[:3] = 0
    model.fc2.weight.data[:, 5:7] = 0
    return model.eval()


def test_a_constant_goes_into_a_bias_that_is_made_for_it() -> None:
    torch.manual_seed(0)
    model = dead(Mlp("plain").double())
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = model(x)
    [removed] = compact(model, x, runs=1).channels
    assert (removed.before, removed.after) == (8, 3)
    assert model.fc2.bias is not None
    assert (model.fc1.out_features, model.fc2.in_features) == (3, 3)
    torch.testing.assert_close(model(x), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["norm", "read along", "weight read", "twice", "value", "softmax"])
def test_channels_that_something_else_sees_stay(kind: str) -> None:
    torch.manual_seed(0)
    model = dead(Mlp(kind))
    x = torch.rand(4, 6)
    report = compact(model, x, runs=1)
    assert report.channels == ()
    assert report.relative_error == 0


def test_shared_layers_stay() -> None:
    model = dead(Mlp("plain"))
    model.other = model.fc1
    assert compact(model, torch.rand(4, 6), runs=1).channels == ()
    tied = dead(Mlp("plain"))
    tied.other = nn.Linear(6, 8)
    tied.other.weight = tied.fc1.weight
    tied.eval()
    assert compact(tied, torch.rand(4, 6), runs=1).channels == ()


def test_one_channel_is_left_of_a_layer_that_is_all_dead() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(linear(model[0]).weight)
    x = torch.rand(5, 3)
    expected = model(x)
    [removed] = compact(model, x, runs=1).channels
    assert removed.after == 1
    torch.testing.assert_close(model(x), expected)


def test_a_constant_before_padding_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1)).eval()
    first = linear(model[0])
    first.weight.data[:4] = 0
    first.bias.data = torch.tensor([1.0, 2.0, -1.0, 0.0, 1.0, 1.0])
    x = torch.rand(1, 3, 7, 7)
    expected = model(x)
    [removed] = compact(model, x, runs=1).channels
    # ReLU makes zeros of the third and the fourth, which padding continues.
    assert (removed.before, removed.after) == (6, 4)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({"padding": (4, 2)}, (5, 3)),
        ({"padding": "same"}, (5, 3)),
        ({"padding": (4, 2), "stride": 2}, (5, 3)),
        ({"padding": (8, 2), "dilation": (2, 1)}, (5, 3)),
        ({"padding": (1, 2)}, (7, 3)),
        ({"padding": 0}, (9, 5)),
        ({"padding": "valid"}, (9, 5)),
        ({"padding": (4, 2), "padding_mode": "reflect"}, (9, 5)),
    ],
)
def test_borders_are_cropped_as_far_as_padding_goes(options: dict[str, Any], after: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, (9, 5), groups=4, **options)
    conv.weight.data[:, :, :2] = conv.weight.data[:, :, -3:] = 0
    conv.weight.data[..., 0] = conv.weight.data[..., -1] = 0
    model = nn.Sequential(conv).eval()
    x = torch.randn(2, 4, 20, 19)
    expected = model(x)
    compact(model, x, runs=1)
    assert conv.kernel_size == after == tuple(conv.weight.shape[2:])
    torch.testing.assert_close(model(x), expected)


class Borrower(nn.Module):
    """Reads the kernel of a convolution that it does not call."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv1d(2, 2, 5, padding=2, groups=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        padding = 2 if self.kind == "fixed" else self.conv.weight.shape[2] // 2
        return F.conv1d(x, self.conv.weight, padding=padding, groups=2)


def test_a_kernel_whose_reader_does_not_bear_it_is_given_back() -> None:
    borrowers = [Borrower("fixed"), Borrower("fitting"), Borrower("fixed")]
    model = nn.Sequential(*borrowers).eval()
    for borrower in borrowers:
        borrower.conv.weight.data[..., 0] = borrower.conv.weight.data[..., -1] = 0
    x = torch.randn(1, 2, 9)
    expected = model(x)
    report = compact(model, x, runs=1)
    assert [kernel.name for kernel in report.kernels] == ["1.conv"]
    assert [(b.conv.kernel_size, b.conv.padding) for b in borrowers] == [((5,), (2,)), ((3,), (1,)), ((5,), (2,))]
    torch.testing.assert_close(model(x), expected)


def test_branches_wait_for_their_merging() -> None:
    model = timm.create_model("slak_a", **SMALL).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 9:
            module.weight.data[:, :, [0, -1]] = 0
            module.weight.data[:, :, :, [0, -1]] = 0
    x = torch.randn(1, 3, 64, 64)
    assert compact(model, x, runs=1).kernels == ()
    fold(model)
    kernels = compact(model, x, runs=1).kernels
    # The small kernel, merged into the tall stripe, fills its middle to the edge, but the wide one is free.
    assert ((5, 51), (3, 49)) in {(kernel.before, kernel.after) for kernel in kernels}


def test_unstructured_zeros_are_honestly_nothing() -> None:
    model = timm.create_model("slak_a", **SMALL).eval()
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() in (2, 4)}
    Masks.drawn(found, {name: int(0.6 * parameter.numel()) for name, parameter in found.items()}, 0).apply(model)
    fold(model)
    report = compact(model, torch.randn(1, 3, 64, 64), runs=1)
    assert report.channels == ()
    assert report.kernels == ()
    assert report.summary.startswith("Nothing could be taken out")
    assert report.parameters_after == report.parameters_before


def test_what_cannot_be_compacted_is_refused() -> None:
    with pytest.raises(InputError, match=r"Expected a network in evaluation mode to compact"):
        compact(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(InputError, match="Expected at least one run, but got 0"):
        compact(nn.Linear(2, 2).eval(), torch.ones(1, 2), runs=0)
    with pytest.raises(InputError, match=r"Expected a kernel cropped alike at both ends for 0, but got \(5,\)"):
        fit_shapes(nn.Sequential(nn.Conv1d(2, 2, 5)), {"0.weight": torch.ones(2, 2, 4)})
    with pytest.raises(InputError, match="Expected a weight of 2 dimensions for 0, but got one of 3"):
        fit_shapes(nn.Sequential(nn.Linear(2, 2)), {"0.weight": torch.ones(2, 2, 4)})
