from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from support.random_statistics import randomise
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.nn.decomposed_conv import MERGED_FORMS, DecomposedConv2d
from widefield.reparam import Reparameterizable, merge

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}
# The published stripes, those of the kernel-size study, and sizes without or almost without a small kernel.
SIZES = [(51, 5), (49, 5), (47, 5), (13, 5), (61, 5), (31, 5), (7, 3), (9, 1), (5, 5), (3, 5), (1, 1)]


def drawn(kernel_size: int = 13, small: int = 5, channels: int = 4, **options: Any) -> DecomposedConv2d:
    torch.manual_seed(0)
    return randomise(DecomposedConv2d(channels, kernel_size, small, **options))


def image(channels: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, 19, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


def difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.mark.parametrize("sizes", SIZES)
def test_the_branches_are_two_stripes_and_a_square_of_their_width(sizes: tuple[int, int]) -> None:
    length, width = sizes
    layer = drawn(*sizes, dtype=torch.float64)
    shapes = {name: tuple(value.shape[2:]) for name, value in layer.named_parameters() if value.dim() == 4}
    expected = {"tall.conv.weight": (length, width), "wide.conv.weight": (width, length)}
    if width < length:
        expected["small.conv.weight"] = (width, width)
    assert shapes == expected
    x = image(dtype=torch.float64)
    total = torch.zeros_like(x)
    for branch in (layer.tall, layer.wide, layer.small):
        if branch is not None:
            padding = [size // 2 for size in branch.conv.kernel_size]
            total += branch.norm(nn.functional.conv2d(x, branch.conv.weight, padding=padding, groups=4))
    torch.testing.assert_close(layer(x), total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("form", MERGED_FORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", LIMIT)
def test_the_merged_form_is_the_sum_of_the_branches(
    sizes: tuple[int, int], form: Any, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    layer = drawn(*sizes, merged_form=form, dtype=dtype).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    x = image(dtype=dtype).contiguous(memory_format=layout)
    branched = layer(x)
    report = merge(layer, x)
    assert layer.is_merged
    assert report.relative_error < LIMIT[dtype]
    y = layer(x)
    assert y.is_contiguous(memory_format=layout)
    assert difference(y, branched) < LIMIT[dtype]
    names = {"stripes": ["merged_tall.weight", "merged_tall.bias", "merged_wide.weight"]}
    assert [name for name, _ in layer.named_parameters()] == names.get(form, ["merged.weight", "merged.bias"])
    numbers = 2 * sizes[0] * sizes[1] if form == "stripes" else max(sizes) ** 2
    assert report.parameters_after == 4 * (numbers + 1)


def test_the_form_is_chosen_at_the_call_or_before_it() -> None:
    at_call, before = drawn(), drawn()
    at_call.reparameterize("cross")
    before.merged_form = "cross"
    merge(before)
    assert at_call.state_dict().keys() == before.state_dict().keys() == {"merged.weight", "merged.bias"}
    assert torch.equal(at_call(image()), before(image()))
    at_call.reparameterize()
    at_call.reparameterize("cross")
    text = "Expected a layer to merge to 'stripes', but got one merged to 'cross': merge a branched copy of it."
    with pytest.raises(InputError, match=re.escape(text)):
        at_call.reparameterize("stripes")


@pytest.mark.parametrize("form", MERGED_FORMS)
def test_merging_again_changes_nothing(form: Any) -> None:
    layer = drawn(merged_form=form)
    merge(layer)
    before = copy.deepcopy(layer.state_dict())
    report = merge(layer, image())
    layer.reparameterize()
    assert report.unit_errors == ()
    assert report.relative_error == 0
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("form", MERGED_FORMS)
def test_a_branch_that_was_merged_alone_is_the_same_later(form: Any) -> None:
    layer = drawn(merged_form=form, dtype=torch.float64)
    x = image(dtype=torch.float64)
    expected = layer(x)
    assert layer.tall is not None
    assert layer.small is not None
    report = merge(layer.tall, x)
    assert layer.tall.is_merged
    assert report.relative_error < 1e-12
    layer.small.reparameterize()
    layer.small.reparameterize()
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer.reparameterize()
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", MERGED_FORMS)
def test_the_merged_layer_keeps_type_place_mode_and_requires_grad(form: Any) -> None:
    for requires_grad in (True, False):
        layer = drawn(merged_form=form).bfloat16().requires_grad_(requires_grad)
        exact = copy.deepcopy(layer).double()
        x = image(dtype=torch.bfloat16)
        before = difference(layer(x), exact(x.double()))
        merge(layer)
        assert {value.dtype for value in layer.parameters()} == {torch.bfloat16}
        assert {value.requires_grad for value in layer.parameters()} == {requires_grad}
        assert not any(module.training for module in layer.modules())
        y = layer(x)
        assert y.dtype == torch.bfloat16
        # Fewer roundings than three branches have.
        assert difference(y, exact(x.double())) <= max(2 * before, 2**-7)


@pytest.mark.parametrize("form", MERGED_FORMS)
def test_a_merged_layer_can_be_trained_on(form: Any) -> None:
    layer = drawn(merged_form=form)
    merge(layer)
    layer.train()(image()).square().mean().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in layer.parameters())


def test_every_branch_gets_a_gradient() -> None:
    layer = drawn().train()
    (layer(image()) * image()).sum().backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in layer.parameters())


def test_training_mode_is_refused() -> None:
    text = "Expected a network in evaluation mode for merging, but got one in training mode (the module itself)"
    layer = DecomposedConv2d(4, 7)
    for part in (layer, layer.tall):
        assert isinstance(part, Reparameterizable)
        with pytest.raises(InputError, match=re.escape(text)):
            part.reparameterize()
        assert not part.is_merged


def test_timm_merges_the_layer_and_finds_its_convolutions() -> None:
    layer = drawn(dtype=torch.float64)
    assert sum(isinstance(module, nn.Conv2d) for module in layer.modules()) == 3
    x = image(dtype=torch.float64)
    expected = layer(x)
    theirs: Any = reparameterize_model(nn.ModuleDict({"a": layer}))
    torch.testing.assert_close(theirs["a"](x), expected, rtol=1e-12, atol=1e-12)
    assert [name for name, m in theirs["a"].named_modules() if isinstance(m, nn.Conv2d)] == [
        "merged_tall",
        "merged_wide",
    ]


def test_the_example_is_larger_than_the_kernel() -> None:
    layer = DecomposedConv2d(4, 13, dtype=torch.float64)
    example = layer.example_input()
    assert example.shape == (1, 4, 26, 26)
    assert example.dtype == torch.float64
    assert torch.equal(example, layer.example_input())


def test_no_parameter_is_made_on_the_meta_device() -> None:
    assert all(value.is_meta for value in DecomposedConv2d(4, 7, device="meta").state_dict().values())
    with torch.device("meta"):
        assert DecomposedConv2d(4, 7, 3)(torch.empty(2, 4, 9, 8)).shape == (2, 4, 9, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        ((4, 12), {}, "Expected an odd kernel size, but got 12: use 13."),
        ((4, 13, 4), {}, "Expected stripes of an odd width, but got 4: use 5."),
        (
            (4, 13),
            {"merged_form": "stripe"},
            "Expected the name of a merged form, but got 'stripe': did you mean 'stripes'",
        ),
    ],
)
def test_what_has_no_centre_or_no_form_is_refused(arguments: Any, options: Any, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        DecomposedConv2d(*arguments, **options)


# Compiling imports parts of torch that warn of each other; the graph and its values are what is checked.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("form", [None, *MERGED_FORMS])
def test_every_form_is_exported_for_images_of_any_size(form: Any) -> None:
    layer, x = drawn(), image()
    if form is not None:
        layer.reparameterize(form)
    sizes = {axis: torch.export.Dim(f"size{axis}", min=8, max=64) for axis in (2, 3)}
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch"), **sizes},))
    for other in (x, x[..., :11].repeat(2, 1, 1, 1)):
        torch.testing.assert_close(program.module()(other), layer(other), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("form", [None, *MERGED_FORMS])
def test_every_form_is_one_graph_for_compilers_and_tracers(form: Any) -> None:
    torch._dynamo.reset()
    layer, x = drawn(), image()
    if form is not None:
        layer.reparameterize(form)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    traced = torch.fx.symbolic_trace(layer)
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-4, atol=1e-5)
