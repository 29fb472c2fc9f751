from __future__ import annotations

import warnings

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from support.families import FAMILIES, Family, images
from support.random_statistics import randomise
from torch import nn

from widefield.reparam import fold

of_each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
two_by_day_all_by_night = pytest.mark.parametrize(
    "family",
    [family if index < 2 else pytest.param(family, marks=pytest.mark.slow) for index, family in enumerate(FAMILIES)],
    ids=str,
)


def drawn(family: Family, *, merged: bool) -> nn.Module:
    model = randomise(family.make(num_classes=10))
    if merged:
        fold(model)
    return model


# Compiling imports parts of torch that warn of each other; the graph and its values are what is checked.
@pytest.mark.filterwarnings("default")
@of_each_family
@pytest.mark.parametrize(
    ("merged", "backend"),
    [
        (True, "aot_eager"),
        pytest.param(False, "aot_eager", marks=pytest.mark.slow),
        pytest.param(False, "inductor", marks=pytest.mark.slow),
        pytest.param(True, "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_network_compiles_to_one_graph(family: Family, merged: bool, backend: str) -> None:
    torch._dynamo.reset()
    model, x = drawn(family, merged=merged), images()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("default")
@two_by_day_all_by_night
def test_training_the_branched_form_compiles_to_one_graph(family: Family) -> None:
    torch._dynamo.reset()
    plain, other = (drawn(family, merged=False).train() for _ in range(2))
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = images()
    plain(x).sum().backward()
    compiled(x).sum().backward()
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("default")
@of_each_family
@pytest.mark.parametrize("merged", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_network_is_exported(family: Family, merged: bool) -> None:
    model, x = drawn(family, merged=merged), images()
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


@of_each_family
@pytest.mark.parametrize("decoder", ["unet", "fpn", "upernet"])
def test_segmentation_models_take_the_network_as_an_encoder(family: Family, decoder: str) -> None:
    options = {"encoder_name": f"tu-{family.variant}", "encoder_weights": None, "classes": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = smp.create_model(decoder, **options)
    y = model(torch.randn(2, 3, 64, 64))
    assert y.shape == (2, 3, 64, 64)
    y.mean().backward()
    encoder = dict(model.get_submodule("encoder").named_parameters())
    assert [name for name, parameter in encoder.items() if parameter.grad is None] == []


def test_deeplab_asks_for_a_dilated_encoder_which_these_are_not() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'output_stride'"):
        smp.create_model("deeplabv3plus", encoder_name="tu-replknet_nano", encoder_weights=None)


def test_timm_merges_the_parts_of_a_network() -> None:
    from timm.utils.model import reparameterize_model

    for family in FAMILIES:
        model = drawn(family, merged=False)
        merged = reparameterize_model(model, inplace=False)
        torch.testing.assert_close(merged(images()), model(images()), rtol=1e-4, atol=1e-4)
        count = sum(p.numel() for p in merged.parameters())
        assert count != sum(p.numel() for p in model.parameters()), family
    assert timm.is_model("slak_a")
