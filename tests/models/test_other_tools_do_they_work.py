from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from support.random_statistics import randomise
from torch import nn

import widefield.models  # noqa: F401 - registers the models
from widefield.reparam import fold


def drawn(*, merged: bool) -> nn.Module:
    torch.manual_seed(0)
    model = randomise(timm.create_model("replknet_nano", num_classes=10))
    if merged:
        fold(model)
    return model


# Compiling imports parts of torch that warn of each other; the graph and its values are what is checked.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("merged", "backend"),
    [
        (True, "aot_eager"),
        pytest.param(False, "inductor", marks=pytest.mark.slow),
        pytest.param(True, "inductor", marks=pytest.mark.slow),
    ],
)
def test_a_network_compiles_to_one_graph(merged: bool, backend: str) -> None:
    torch._dynamo.reset()
    model, x = drawn(merged=merged), torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("default")
def test_training_the_branched_form_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    plain, other = drawn(merged=False).train(), drawn(merged=False).train()
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 64, 64)
    plain(x).sum().backward()
    compiled(x).sum().backward()
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("merged", [False, True])
def test_a_network_is_exported(merged: bool) -> None:
    model, x = drawn(merged=merged), torch.randn(2, 3, 64, 64)
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


def test_segmentation_models_take_the_network_as_an_encoder() -> None:
    model = smp.create_model("unet", encoder_name="tu-replknet_nano", encoder_weights=None, classes=3)
    y = model(torch.randn(2, 3, 64, 64))
    assert y.shape == (2, 3, 64, 64)
    y.mean().backward()
    encoder = dict(model.get_submodule("encoder").named_parameters())
    assert [name for name, parameter in encoder.items() if parameter.grad is None] == []
