from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.families import FAMILIES, Family
from support.random_statistics import randomise
from torch import Tensor, nn

from widefield.analysis.kernel_plot import draw_kernel_weights
from widefield.analysis.kernel_weights import KernelWeights, measure_kernel_weights, save_kernel_weights
from widefield.nn import ReparamConv2d
from widefield.reparam import fold


def measured(kernel: Tensor, channels: int = 3) -> KernelWeights:
    """What is said of a depthwise convolution whose kernels are all `kernel`."""
    height, width = kernel.shape
    conv = nn.Conv2d(channels, channels, (height, width), groups=channels)
    with torch.no_grad():
        conv.weight.copy_(kernel.expand_as(conv.weight))
    return measure_kernel_weights(conv)[0]


def test_a_kernel_of_one_tap_lies_in_the_centre() -> None:
    delta = torch.zeros(9, 9)
    delta[4, 4] = -2
    layer = measured(delta)
    assert (layer.central_share, layer.skeleton_share) == (1, 1)
    assert [layer.effective_size(share) for share in (0.01, 0.9, 1)] == [1, 1, 1]
    assert layer.radial_energy == (1, 0, 0, 0, 0, 0, 0)
    assert torch.equal(layer.map, delta.double().abs() / 2)


def test_an_even_kernel_has_the_shares_of_areas() -> None:
    layer = measured(torch.ones(31, 31))
    assert layer.central_share == pytest.approx(9 / 961)
    assert layer.skeleton_share == pytest.approx(61 / 961)
    # 29^2 / 31^2 is 0.875.
    assert [layer.effective_size(share) for share in (9 / 961, 0.87, 0.9, 0.99, 1)] == [3, 29, 31, 31, 31]
    assert layer.radial_energy[:2] == pytest.approx((1 / 961, 8 / 961))
    assert sum(layer.radial_energy) == pytest.approx(1)


def test_a_cross_has_the_shares_of_its_arms() -> None:
    cross = torch.zeros(51, 51)
    cross[23:28] = cross[:, 23:28] = 1
    layer, taps = measured(cross), 2 * 5 * 51 - 25
    assert layer.central_share == pytest.approx(9 / taps)
    assert layer.skeleton_share == pytest.approx(101 / taps)
    # A square of side s beyond the crossing holds 10 s - 25 taps.
    assert layer.effective_size(0.9) == next(s for s in range(5, 52, 2) if 10 * s - 25 >= 0.9 * taps)


def reference(weight: Tensor, dilation: tuple[int, int]) -> dict[str, Any]:
    """The definitions, tap by tap."""
    _, _, rows, columns = weight.shape
    height, width = dilation[0] * (rows - 1) + 1, dilation[1] * (columns - 1) + 1
    sums: dict[tuple[int, int], float] = {}
    rings: dict[int, float] = {}
    for i in range(rows):
        for j in range(columns):
            taps = [float(value) for value in weight[:, :, i, j].flatten()]
            y, x = i * dilation[0] - (height - 1) / 2, j * dilation[1] - (width - 1) / 2
            sums[i * dilation[0], j * dilation[1]] = sum(map(abs, taps))
            ring = round(math.hypot(y, x))
            rings[ring] = rings.get(ring, 0) + sum(tap**2 for tap in taps)
    total, energy = sum(sums.values()), sum(rings.values())

    def share(inside: Any) -> float:
        return (
            sum(v for (i, j), v in sums.items() if inside(abs(i - (height - 1) / 2), abs(j - (width - 1) / 2))) / total
        )

    return {
        "size": (height, width),
        "map": [[sums.get((i, j), 0) / max(sums.values()) for j in range(width)] for i in range(height)],
        "centre": share(lambda y, x: max(y, x) <= 1),
        "skeleton": share(lambda y, x: min(y, x) < 1),
        "within": {s: share(lambda y, x, s=s: max(y, x) <= (s - 1) / 2) for s in range(1, max(height, width) + 1)},
        "rings": {ring: value / energy for ring, value in rings.items()},
    }


@pytest.mark.parametrize(
    ("size", "dilation", "groups"),
    [((7, 7), (1, 1), 6), ((8, 8), (1, 1), 6), ((9, 5), (1, 1), 1), ((3, 5), (4, 3), 2), ((1, 11), (1, 1), 6)],
)
def test_figures_are_those_of_the_definitions(size: tuple[int, int], dilation: tuple[int, int], groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, size, dilation=dilation, groups=groups).double()
    layer = measure_kernel_weights(nn.Sequential(conv, nn.ReLU()))[0]
    expected = reference(conv.weight.detach(), dilation)
    assert (layer.name, layer.channels, layer.is_depthwise) == ("0", 6, groups == 6)
    assert layer.kernel_size == expected["size"]
    torch.testing.assert_close(layer.map, torch.tensor(expected["map"], dtype=torch.float64))
    assert layer.central_share == pytest.approx(expected["centre"])
    assert layer.skeleton_share == pytest.approx(expected["skeleton"])
    for ring, energy in enumerate(layer.radial_energy):
        assert energy == pytest.approx(expected["rings"].get(ring, 0))
    parity = max(layer.kernel_size) % 2
    for share in (0.3, 0.6, 0.9):
        sides = [side for side, held in expected["within"].items() if side % 2 == parity and held >= share]
        assert layer.effective_size(share) == min(sides)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_branches_are_seen_as_the_one_kernel_that_they_merge_to(family: Family) -> None:
    model = randomise(family.make()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = measure_kernel_weights(model)
    assert len(layers) >= 3
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for layer in layers:
        unit: Any = copy.deepcopy(model.get_submodule(layer.name)).eval()
        for part in unit.modules():
            if hasattr(part, "merged_form"):
                part.merged_form = "cross"
        if hasattr(unit, "reparameterize"):
            unit.reparameterize()
        (weight,) = (part.weight for part in unit.modules() if isinstance(part, nn.Conv2d))
        expected = weight.detach().double().abs().sum((0, 1))
        assert layer.channels == weight.shape[0]
        torch.testing.assert_close(layer.map, expected / expected.max(), rtol=1e-4, atol=1e-5)


def test_stripes_of_a_merged_network_are_still_a_cross() -> None:
    model = randomise(FAMILIES[1].make()).eval()
    branched = measure_kernel_weights(model)
    fold(model)
    for before, after in zip(branched, measure_kernel_weights(model), strict=True):
        assert (before.name, before.kernel_size) == (after.name, after.kernel_size)
        torch.testing.assert_close(before.map, after.map, rtol=1e-4, atol=1e-5)
        reach = before.kernel_size[0] // 2 - 2
        assert float(after.map[:reach, :reach].max()) < 1e-5


class WithShortcut(nn.Module):
    """A user's own block: it does not say that it can be merged."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.BatchNorm2d(4)
        self.bends = activation is not None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) + x
        return y.relu() if self.bends else y


def test_what_a_users_block_does_counts_and_not_what_it_is_made_of() -> None:
    block = randomise(WithShortcut()).eval()
    layer = measure_kernel_weights(nn.ModuleDict({"block": block}))[0]
    assert block.norm.running_var is not None
    scale = block.norm.weight / (block.norm.running_var + block.norm.eps).sqrt()
    kernel = block.conv.weight.detach() * scale.detach().reshape(-1, 1, 1, 1)
    kernel[:, :, 3, 3] += 1
    expected = kernel.double().abs().sum((0, 1))
    assert layer.name == "block"
    torch.testing.assert_close(layer.map, expected / expected.max(), rtol=1e-4, atol=1e-5)


def test_a_block_that_is_no_convolution_shows_the_convolutions_in_it() -> None:
    bent = randomise(WithShortcut(nn.ReLU())).eval()
    model = nn.ModuleDict({"bent": bent, "chain": nn.Sequential(bent.conv, nn.Conv2d(4, 4, 9, padding=4, groups=4))})
    layers = measure_kernel_weights(model)
    assert [(layer.name, layer.kernel_size) for layer in layers] == [
        ("bent.conv", (7, 7)),
        ("chain.0", (7, 7)),
        ("chain.1", (9, 9)),
    ]
    expected = bent.conv.weight.detach().double().abs().sum((0, 1))
    assert torch.equal(layers[0].map, expected / expected.max())


def test_layers_can_be_chosen_by_name_size_and_place() -> None:
    model = FAMILIES[0].make(kernel_sizes=(15, 13, 9, 7)).eval()
    sizes = [layer.kernel_size[0] for layer in measure_kernel_weights(model)]
    assert sizes == sorted(sizes, reverse=True)
    assert {layer.kernel_size for layer in measure_kernel_weights(model, min_size=13)} == {(15, 15), (13, 13)}
    told: list[tuple[int, int]] = []
    chosen = measure_kernel_weights(
        model,
        layers=["stages.3", "stages.0.blocks.0.large_kernel"],
        progress=lambda done, all_: told.append((done, all_)),
    )
    assert [layer.kernel_size[0] for layer in chosen] == [15, 7]
    assert told == [(1, 2), (2, 2)]


def test_a_network_of_zeros_has_no_shares() -> None:
    layer = measured(torch.zeros(7, 7))
    assert (layer.central_share, layer.skeleton_share, layer.effective_size()) == (0, 0, 0)
    assert sum(layer.radial_energy) == 0


def test_figures_are_kept_and_drawn(tmp_path: Path) -> None:
    network = randomise(nn.Sequential(ReparamConv2d(4, 13), nn.ReLU(), ReparamConv2d(4, 9))).eval()
    layers = measure_kernel_weights(network)
    save_kernel_weights(tmp_path / "kernels.json", layers)
    kept = json.loads((tmp_path / "kernels.json").read_text(encoding="utf-8"))
    assert [(entry["name"], entry["kernel_size"]) for entry in kept] == [("0", [13, 13]), ("2", [9, 9])]
    assert kept[0]["map"] == layers[0].map.tolist()
    assert kept[1]["effective_size_90"] == layers[1].effective_size(0.9)
    for scale in ("linear", "log"):
        draw_kernel_weights(tmp_path / f"{scale}.png", layers, title="two layers", scale=scale)
        with Image.open(tmp_path / f"{scale}.png") as image:
            colours = image.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 20
