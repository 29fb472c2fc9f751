from __future__ import annotations

import warnings
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from support.families import FAMILIES, Family, images
from torch import Tensor, nn

from widefield import list_models
from widefield._core.errors import InputError

# What segmentation_models.pytorch asks of each of its encoders.
WHOLE = [pytest.param(Family(name), marks=pytest.mark.slow, id=name) for name in list_models()]
DECODERS = ("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "upernet", "segformer", "dpt")
of_each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f}-small")
of_each_family_by_night = pytest.mark.parametrize(
    "family", [pytest.param(family, marks=pytest.mark.slow, id=f"{family}-small") for family in FAMILIES]
)


def encoder_of(family: Family, **options: Any) -> Any:
    options = {"in_channels": 3, "depth": 5, "weights": None, **family.options, **options}
    return smp.encoders.get_encoder(f"tu-{family.variant}", **options)


def check_features(encoder: Any, x: Tensor, depth: int) -> None:
    features = encoder(x)
    assert len(features) == len(encoder.out_channels) == depth + 1
    for level, (y, channels) in enumerate(zip(features, encoder.out_channels, strict=True)):
        assert tuple(y.shape) == (len(x), channels, x.shape[2] // 2**level, x.shape[3] // 2**level)
        assert bool(torch.isfinite(y).all())
    # What half the size would hold is empty: the first stage is at a quarter.
    assert encoder.out_channels[:2] == [x.shape[1], 0]
    assert encoder.output_stride == 2**depth


@of_each_family
@pytest.mark.parametrize("depth", [1, *(pytest.param(depth, marks=pytest.mark.slow) for depth in (2, 3, 4)), 5])
def test_an_encoder_has_the_depth_that_is_asked_for(family: Family, depth: int) -> None:
    encoder = encoder_of(family, depth=depth).eval()
    check_features(encoder, images(2, 3, 64, 96), depth)
    if depth > 1:
        sum(y.mean() for y in encoder(images())[2:]).backward()
        assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("family", WHOLE)
@torch.no_grad()
def test_every_variant_is_an_encoder(family: Family) -> None:
    for depth in (3, 5):
        check_features(encoder_of(family, depth=depth).eval(), images(1, 3, 64, 64), depth)


@of_each_family
@pytest.mark.parametrize("channels", [1, *(pytest.param(count, marks=pytest.mark.slow) for count in (2, 4))])
def test_an_encoder_takes_other_channels(family: Family, channels: int) -> None:
    check_features(encoder_of(family, in_channels=channels).eval(), images(1, channels, 64, 64), 5)


@of_each_family_by_night
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_is_trained_and_stored(family: Family, decoder: str) -> None:
    options: dict[str, Any] = {"encoder_output_stride": 32} if decoder == "pan" else {}
    options |= {"encoder_weights": None, "classes": 3, **family.options}
    if decoder == "dpt":
        options["decoder_readout"] = "ignore"
    # What "pan" pools three times has to be left.
    x = images(2, 3, 256, 288) if decoder == "pan" else images(2, 3, 64, 96)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model, other = (
            smp.create_model(decoder, encoder_name=f"tu-{family.variant}", **options).train() for _ in range(2)
        )
    y = model(x)
    assert y.shape == (2, 3, *x.shape[2:])
    y.square().mean().backward()
    encoder: nn.Module = model.get_submodule("encoder")
    reached = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    # "dpt" takes the whole classifier and leaves the end of it unused.
    unused = ("model.norm.", "model.head.") if decoder == "dpt" else ()
    assert reached == {name for name, _ in encoder.named_parameters() if not name.startswith(unused)}
    other.load_state_dict(model.state_dict())
    with torch.inference_mode():
        expected = model.eval()(x[:1])
        for _ in range(2):
            torch.testing.assert_close(other.eval()(x[:1]), expected, rtol=1e-4, atol=1e-4)


# Compiling imports parts of torch that warn of each other.
@pytest.mark.filterwarnings("default")
@of_each_family_by_night
@torch.no_grad()
def test_an_encoder_is_exported_and_compiled(family: Family) -> None:
    torch._dynamo.reset()
    encoder, x = encoder_of(family).eval(), images(1, 3, 64, 96)
    expected = encoder(x)
    exported = torch.export.export(encoder, (x,)).module()(x)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")(x)
    for a, b, y in zip(exported, compiled, expected, strict=True):
        torch.testing.assert_close(a, y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b, y, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_a_segmentation_model_refuses_scripting_in_one_sentence() -> None:
    model = smp.Unet(encoder_name="tu-replknet_nano", encoder_weights=None)
    with pytest.raises(InputError, match=r"but got torch\.jit\.script: use torch\.compile or torch\.export"):
        torch.jit.script(model)
