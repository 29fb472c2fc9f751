"""The settings of the papers' ablations: merged, recognised, refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from support.random_statistics import randomise
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.checkpoints import slak as slak_names
from widefield.checkpoints import unireplknet as unireplknet_names
from widefield.checkpoints.recognise import recognise
from widefield.models import create_model
from widefield.models.published import load_published, read_published
from widefield.models.slak import SLaK
from widefield.models.unireplknet import UniRepLKNet
from widefield.nn import ConvNorm2d, DecomposedConv2d, ReparamConv2d
from widefield.nn.dilated_reparam_conv import BRANCH_SETS
from widefield.nn.extra_structure import EXTRA_STRUCTURES, ExtraStructure, extra_convolutions
from widefield.reparam import merge

SMALL: dict[str, Any] = {"channels": (8, 8, 16, 16), "depths": (1, 1, 3, 1), "num_classes": 3, "layer_scale": 1.0}
BLOCKS = (3, 7, (13, 0, 15), 9)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unireplknet(**options: Any) -> UniRepLKNet:
    torch.manual_seed(0)
    return randomise(UniRepLKNet(**{**SMALL, "kernel_sizes": BLOCKS, **options}).double())


def slak(**options: Any) -> SLaK:
    torch.manual_seed(0)
    return randomise(SLaK(**{**SMALL, "kernel_sizes": (31, 13, 7, 5), **options}).double())


STUDIES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"{name} behind": (unireplknet, {"extra_structure": name}) for name in EXTRA_STRUCTURES},
    **{f"{name} beside": (unireplknet, {"branch_set": name}) for name in BRANCH_SETS},
    "both": (unireplknet, {"extra_structure": "bottleneck", "branch_set": "same_size"}),
    "stripes": (slak, {"branch_norm": False}),
    "cross": (slak, {"branch_norm": False, "merged_form": "cross"}),
    "square": (slak, {"branch_norm": False, "decomposed": False}),
}


@pytest.mark.parametrize("study", STUDIES)
def test_it_is_recognised_merged_with_a_certificate_and_recognised_again(study: str) -> None:
    make, options = STUDIES[study]
    model, x = make(**options), images()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(load_published(model.state_dict())(x), expected)
        assert merge(model, x).relative_error < 1e-12
        assert not any("running_mean" in name for name in model.state_dict())
        torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(load_published(model.state_dict())(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("study", STUDIES)
def test_every_parameter_is_trained(study: str) -> None:
    make, options = STUDIES[study]
    model = make(**options).train()
    # A squeeze has few channels here, and ReLUs before it may all be shut.
    (model(images()) * torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).sum().backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("branch_set", BRANCH_SETS)
@pytest.mark.parametrize("structure", EXTRA_STRUCTURES)
def test_structure_branches_and_kernels_are_read_off_a_state_dict(structure: ExtraStructure, branch_set: Any) -> None:
    found = recognise(unireplknet(extra_structure=structure, branch_set=branch_set).state_dict()).model_kwargs
    assert found.get("extra_structure", "se") == structure
    assert found.get("branch_set", "dilated") == branch_set
    assert found["kernel_sizes"] == ((3,), (7,), (13, 0, 15), (9,))


def test_a_published_variant_changed_by_a_study_is_no_published_variant() -> None:
    for options in ({"extra_structure": "none"}, {"branch_set": "same_size"}):
        state = timm.create_model("unireplknet_a", **options, device="meta").state_dict()
        assert read_published(state).variant is None
    assert read_published(timm.create_model("slak_l", device="meta").state_dict()).variant == "slak_l"


def test_branch_norms_are_missed_as_in_the_published_code() -> None:
    model = slak(branch_norm=False)
    theirs = slak_names.to_published(model.state_dict())
    kernel = [key for key in theirs if key.startswith("stages.0.0.large_kernel.")]
    assert kernel == [f"stages.0.0.large_kernel.{name}.conv.weight" for name in ("LoRA1", "LoRA2", "small_conv")]
    assert recognise(theirs).model_kwargs["branch_norm"] is False
    assert torch.equal(load_published(theirs)(images()), model(images()))
    assert "branch_norm" not in recognise(slak().state_dict()).model_kwargs


@pytest.mark.parametrize("layer", [DecomposedConv2d(4, 13, 5, norm=False), ReparamConv2d(4, 13, 5, norm=False)])
def test_a_kernel_without_norms_is_the_sum_of_plain_convolutions(layer: Any) -> None:
    parts = [part for part in layer.children() if isinstance(part, ConvNorm2d)]
    x = torch.randn(1, 4, 16, 16)
    expected = sum(
        nn.functional.conv2d(x, p.conv.weight, padding=tuple(k // 2 for k in p.conv.kernel_size), groups=4)
        for p in parts
    )
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)
    merge(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_what_the_published_code_does_not_make_keeps_our_names() -> None:
    for options, part in (
        ({"extra_structure": "none"}, "squeeze-and-excitation"),
        ({"extra_structure": "pointwise"}, "squeeze-and-excitation"),
        ({"branch_set": "none"}, "dilated branches"),
        ({"branch_set": "same_equivalent_size"}, "dilated branches"),
    ):
        text = (
            "Expected a UniRepLKNet with squeeze-and-excitation and dilated branches, which the published code always "
            f"makes, but got one without {part}: keep it under our names, which load_published() reads."
        )
        with pytest.raises(InputError, match=re.escape(text)):
            unireplknet_names.to_published(unireplknet(**options).state_dict())


def test_a_published_file_without_such_parts_is_damaged_and_no_study() -> None:
    theirs = unireplknet_names.to_published(unireplknet().state_dict())
    for mark in (".se.", ".dil_"):
        with pytest.raises(InputError, match="Expected a complete state dict of the published UniRepLKNet"):
            load_published({key: value for key, value in theirs.items() if mark not in key})


def test_names_that_there_are_not_are_refused() -> None:
    with pytest.raises(InputError, match="Expected the name of a structure, but got 'bottle': did you mean 'bottlenec"):
        unireplknet(extra_structure="bottle")
    with pytest.raises(InputError, match="Expected the name of a branch set, but got 'same': did you mean 'same_size'"):
        unireplknet(branch_set="same", kernel_sizes=(3, 3, 3, 3))
    with pytest.raises(InputError, match="Expected the name of a branch set, but got 'same'"):
        create_model("unireplknet_a", branch_set="same")


def test_the_convolutions_of_a_structure_are_what_they_are_called() -> None:
    wanted = {
        "bottleneck": [(16, 4, 1, 1), (4, 4, 3, 4), (4, 16, 1, 1)],
        "pointwise": [(16, 4, 1, 1), (4, 16, 1, 1)],
        "depthwise": [(16, 16, 3, 16)] * 2,
    }
    for structure, expected in wanted.items():
        layers = extra_convolutions(structure, 16)  # pyright: ignore[reportArgumentType]
        assert layers is not None
        convs: list[Any] = [layer.conv for layer in layers]  # pyright: ignore[reportAttributeAccessIssue]
        assert [(c.in_channels, c.out_channels, c.kernel_size[0], c.groups) for c in convs] == expected
        activations = [type(layer.activation) for layer in layers]  # pyright: ignore[reportAttributeAccessIssue]
        assert activations == [nn.ReLU] * (len(expected) - 1) + [nn.Identity]
        assert layers(torch.randn(1, 16, 5, 5)).shape == (1, 16, 5, 5)
    assert extra_convolutions("none", 16) is extra_convolutions("se", 16) is None
