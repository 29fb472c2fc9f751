from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.nn.utils import prune

from widefield._core.errors import InputError
from widefield.nn import ReparamConv2d
from widefield.surgery import enlarge


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"kernel_size": 8},
            "Expected an odd kernel size for '1', but got 8: use the next odd number, so that there is a centre.",
        ),
        ({"kernel_size": 7.0}, "Expected an odd kernel size for '1', but got 7.0: use"),
        (
            {"kernel_size": 3},
            "Expected a kernel size of at least 5 for '1', whose kernel spans that much, but got 3: "
            "use a larger size, or leave that convolution out with where=.",
        ),
        (
            {"kernel_size": 3, "where": lambda name, conv: name == "2"},
            "Expected a kernel size of at least 5 for '2', whose kernel spans that much, but got 3: use",
        ),
        (
            {"kernel_size": 7, "method": "dilate"},
            "Expected the name of a method, but got 'dilate': did you mean 'dilated'",
        ),
        (
            {"kernel_size": 7, "method": "peripheral", "include_dense": True},
            "Expected depthwise convolutions for the method 'peripheral', but got '0' with 3 inputs, 4 outputs and "
            '1 groups: use "dense" or "dilated" for it, or leave it out.',
        ),
        (
            {"kernel_size": 7, "method": "decomposed", "branch": False},
            "Expected options of the method 'decomposed', but got branch=False, which belongs to 'dense' and "
            "'dilated': leave it out or change the method.",
        ),
        (
            {"kernel_size": 7, "stripe_width": 5},
            "Expected options of the method 'dilated', but got stripe_width, which belongs to 'decomposed': leave",
        ),
        (
            {"kernel_size": 7, "centre_radius": 3},
            "Expected options of the method 'dilated', but got centre_radius, which belongs to 'peripheral': leave",
        ),
        (
            {"kernel_size": 7, "method": "decomposed", "stripe_width": 4},
            "Expected an odd stripe width from 5, the small kernel's span, to 7, but got 4: use a width between them.",
        ),
        (
            {"kernel_size": 7, "method": "decomposed", "stripe_width": 9},
            "Expected an odd stripe width from 5, the small kernel's span, to 7, but got 9: use",
        ),
        (
            {"kernel_size": 7, "method": "peripheral", "centre_radius": 1},
            "Expected a centre radius of at least 2, the small kernel's, but got 1: "
            "raise it, so that every tap of the small kernel has a parameter of its own.",
        ),
        (
            {"kernel_size": 7, "where": lambda name, conv: False},
            "Expected a network with convolutions to enlarge, but got Sequential with 3, none of them "
            "('0': it was not chosen by where=): choose convolutions with where= or include_dense=True.",
        ),
        (
            {"kernel_size": 5, "where": lambda name, conv: name == "1"},
            "none of them ('1': its kernel is 5x5 already): choose",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(arguments: dict[str, Any], text: str) -> None:
    model = network()
    modules, before = list(model), {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=re.escape(text)):
        enlarge(model, **arguments)
    assert all(a is b for a, b in zip(model, modules, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_error_at_a_later_layer_leaves_the_earlier_ones() -> None:
    model = network()
    sizes = {"1": 9, "2": 4}
    with pytest.raises(InputError, match=re.escape("an odd kernel size for '2', but got 4")):
        enlarge(model, lambda name, conv: sizes.get(name))
    assert [type(module) for module in model] == [nn.Conv2d] * 3


def test_a_network_without_convolutions_or_a_convolution_alone_is_refused() -> None:
    text = "Expected a network with convolutions to enlarge, but got Sequential without any: choose"
    with pytest.raises(InputError, match=re.escape(text)):
        enlarge(nn.Sequential(nn.Linear(3, 3)), 7)
    text = "Expected a network of modules, but got a convolution alone: put it into an nn.Sequential."
    with pytest.raises(InputError, match=re.escape(text)):
        enlarge(nn.Conv2d(4, 4, 3, padding=1, groups=4), 7)


def test_a_vision_transformer_has_none() -> None:
    text = (
        "Expected a network with convolutions to enlarge, but got VisionTransformer with 1, none of them "
        "('patch_embed.proj': it is not depthwise (to be chosen with include_dense=True or where=))"
    )
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, depth=1)
    with pytest.raises(InputError, match=re.escape(text)):
        enlarge(model, 7)
    with pytest.raises(InputError, match=re.escape("its kernel of 16x16 has no centre")):
        enlarge(model, 17, include_dense=True)


def hooked() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.register_forward_hook(lambda module, inputs, output: None)
    return conv


def weight_normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))


def pruned() -> nn.Module:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    prune.random_unstructured(conv, "weight", 0.5)
    return conv


def tied() -> nn.Module:
    first, second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    second.weight = first.weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv1d(4, 4, 3, padding=1), "Conv1d is not an ordinary two-dimensional convolution"),
        (lambda: nn.ConvTranspose2d(4, 4, 3, padding=1), "ConvTranspose2d is not an ordinary two-dimensional"),
        (lambda: StdConv2d(4, 4, 3, padding=1), "StdConv2d is not an ordinary two-dimensional convolution"),
        (weight_normed, "ParametrizedConv2d is not an ordinary two-dimensional convolution"),
        (pruned, "its weight is computed by something else (a weight norm or a pruning mask)"),
        (hooked, "it has hooks, which would be lost"),
        (tied, "another module has the same parameters"),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "its padding is circular, not zeros"),
        (lambda: nn.Conv2d(4, 4, 4, padding=1), "its kernel of 4x4 has no centre"),
        (lambda: nn.Conv2d(4, 4, 3), "its padding (0, 0) does not keep the size of the image"),
        (lambda: nn.Conv2d(4, 4, 3, padding="valid"), "its padding valid does not keep the size of the image"),
        (lambda: Conv2dSame(4, 4, 1, stride=2), "its padding (0, 0) does not keep the size of the image"),
        (
            lambda: ReparamConv2d(4, 5, 3),
            "ReparamConv2d merges in a way that needs its kernel as it is: merge the network first",
        ),
        (lambda: ReparamConv2d(4, 5, None), "ReparamConv2d merges in a way that needs its kernel as it is"),
    ],
)
def test_what_is_left_as_it_is_is_named_with_the_reason(make: Any, reason: str) -> None:
    model = nn.ModuleDict({"odd_one": make(), "usual": nn.Conv2d(4, 4, 3, padding=1)})
    kept = model["odd_one"]
    report = enlarge(model, 7, "dense", where=lambda name, conv: True)
    assert [layer.name for layer in report.layers] == ["usual"]
    assert all(layer.name.startswith("odd_one") for layer in report.skipped)
    assert all(layer.reason.startswith(reason) for layer in report.skipped)
    assert report.skipped
    assert model["odd_one"] is kept
    assert not any(type(module).__name__ == "EnlargedConv2d" for module in kept.modules())
