"""The counts of `measure_cost` against published figures; the tables are those of the models' own tests."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from models.test_convnext_lk_is_it_convnext import DERIVED as CONVNEXT_LK
from models.test_costs_are_they_the_published_ones import PUBLISHED as REPLKNET
from models.test_costs_are_they_the_published_ones import fits
from models.test_pelk_costs_are_they_the_published_ones import MACS as PELK_MACS
from models.test_pelk_costs_are_they_the_published_ones import PARAMETERS as PELK_PARAMETERS
from models.test_slak_is_it_the_published_one import PUBLISHED as SLAK
from models.test_unireplknet_costs_are_they_the_published_ones import PUBLISHED as UNIREPLKNET

import widefield.models  # noqa: F401 - registers the models
from widefield.analysis.cost import Cost, measure_cost
from widefield.nn import ReparamConv2d
from widefield.reparam import fold


def on_meta(name: str, **options: Any) -> Any:
    return timm.create_model(name, device="meta", **options).eval()


def at(model: Any, size: int) -> Cost:
    return measure_cost(model, (1, 3, size, size))


@pytest.mark.parametrize("name", REPLKNET)
def test_replknet(name: str) -> None:
    branched, merged, at_224, depthwise, _, _ = REPLKNET[name]
    model = on_meta(name)
    assert fits(sum(parameter.numel() for parameter in model.parameters()) / 1e6, branched)
    # The authors merge the large kernels alone.
    fold(model, where=lambda _, module: isinstance(module, ReparamConv2d))
    found = at(model, 224)
    assert fits(found.total.parameters / 1e6, merged)
    assert fits(found.total.macs / 1e9, at_224)
    # The table's depthwise part has the 3 x 3 convolutions too, which in RepLKNet-3 are all of it.
    small = float(REPLKNET["replknet_3b"][3]) if name.endswith("b") else 0.08
    kernels = found.large_kernel_macs / 1e9
    assert kernels == pytest.approx(float(depthwise) - small if name != "replknet_3b" else 0, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLKNET)
def test_replknet_at_larger_sizes(name: str) -> None:
    model = on_meta(name)
    fold(model, where=lambda _, module: isinstance(module, ReparamConv2d))
    for size, printed in zip((384, 320), REPLKNET[name][4:], strict=True):
        assert fits(at(model, size).total.macs / 1e9, printed)


@pytest.mark.parametrize("name", UNIREPLKNET)
def test_unireplknet(name: str) -> None:
    branched, merged, at_224, _ = UNIREPLKNET[name]
    model = on_meta(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == branched
    fold(model)
    found = at(model, 224)
    assert found.total.parameters == merged
    assert found.total.macs / 1e9 == pytest.approx(at_224, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNIREPLKNET)
def test_unireplknet_at_a_larger_size(name: str) -> None:
    model = on_meta(name)
    fold(model)
    assert at(model, 384).total.macs / 1e9 == pytest.approx(UNIREPLKNET[name][3], rel=0.01)


@pytest.mark.parametrize("name", SLAK)
def test_slak(name: str) -> None:
    parameters, _, gmacs = SLAK[name]
    found = at(on_meta(name), 224)
    assert found.total.parameters == parameters
    assert fits(found.total.macs / 1e9, gmacs)


@pytest.mark.parametrize(
    ("name", "size", "gmacs"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case[1] != (224, 224) else []) for case in PELK_MACS],
)
def test_pelk(name: str, size: tuple[int, int], gmacs: str) -> None:
    model = on_meta(name, position="none")
    assert fits(sum(parameter.numel() for parameter in model.parameters()) / 1e6, PELK_PARAMETERS[name])
    # The paper states the cost of dense kernels.
    assert fits(measure_cost(model, (1, 3, *size)).total.macs / 1e9, gmacs)
    fold(model)
    assert measure_cost(model, (1, 3, *size)).total.macs / 1e9 == pytest.approx(float(gmacs), rel=0.005)


def test_a_quarter_of_pelk_t_is_in_its_large_kernels() -> None:
    """PeLK (Chen et al., CVPR 2024), section 6.2: about 25 %; with the 5 x 5 branches 24.8 %."""
    model = on_meta("pelk_t")
    fold(model)
    assert at(model, 224).large_kernel_mac_share == pytest.approx(0.248, abs=0.004)


@pytest.mark.parametrize("name", CONVNEXT_LK)
def test_convnext_lk(name: str) -> None:
    millions, _, gmacs = CONVNEXT_LK[name]
    found = at(on_meta(name), 224)
    assert fits(found.total.parameters / 1e6, millions)
    assert fits(found.total.macs / 1e9, gmacs)


def test_mobilenetv2_lk() -> None:
    model = on_meta("mobilenetv2_lk")
    fold(model)
    found = at(model, 224)
    # Three blocks of 960 channels at 7 x 7.
    assert (found.large_kernel_layers, found.large_kernel_macs) == (3, 3 * 960 * 49 * 169)


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("swin_base_patch4_window7_224", 87.8, 15.4), ("convnext_base", 88.6, 15.4)],
)
def test_networks_of_others(name: str, millions: float, gmacs: float) -> None:
    """Swin (Liu et al., ICCV 2021), table 1; ConvNeXt (Liu et al., CVPR 2022), table 1."""
    with torch.device("meta"):
        model = timm.create_model(name)
    found = at(model, 224)
    assert found.total.parameters / 1e6 == pytest.approx(millions, rel=0.01)
    assert found.total.macs / 1e9 == pytest.approx(gmacs, rel=0.01)
