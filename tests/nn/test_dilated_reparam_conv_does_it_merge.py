from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from support.random_statistics import randomise
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from widefield import merge
from widefield._core.errors import InputError
from widefield.nn.dilated_reparam_conv import (
    BRANCH_SETS,
    PUBLISHED_BRANCHES,
    Branch,
    BranchSet,
    DilatedReparamConv2d,
    branch_table,
)
from widefield.reparam import Reparameterizable, fold

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}

SIZES = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 31, 51]


def noise(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def spans(kernel_size: int) -> list[int]:
    return [(k - 1) * r + 1 for k, r in branch_table(kernel_size)]


@pytest.mark.parametrize("kernel_size", SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", LIMIT)
def test_the_merged_kernel_is_the_sum_of_its_branches(
    kernel_size: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    layer = randomise(DilatedReparamConv2d(5, kernel_size, dtype=dtype)).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    x = noise(2, 5, 16, 13, dtype=dtype).contiguous(memory_format=layout)
    branched = layer(x)
    report = merge(layer, x)
    assert layer.is_merged
    assert [name for name, _ in layer.named_parameters()] == ["large.conv.weight", "large.conv.bias"]
    assert report.parameters_after == 5 * kernel_size**2 + 5
    assert report.relative_error < LIMIT[dtype]
    merged = layer(x)
    assert merged.is_contiguous(memory_format=layout)
    assert (merged - branched).abs().max() <= LIMIT[dtype] * branched.abs().max()


@pytest.mark.parametrize("branches", [(), ((1, 4),), ((3, 1), (3, 4)), ((9, 1), (5, 2), (1, 1))])
def test_branches_of_ones_own_merge_too_and_are_what_torch_computes(branches: tuple[Branch, ...]) -> None:
    layer = randomise(DilatedReparamConv2d(3, 9, branches=branches, dtype=torch.float64))
    x = noise(2, 3, 12, 10, dtype=torch.float64)
    expected = layer.large.norm(F.conv2d(x, layer.large.conv.weight, padding=4, groups=3))
    for (size, dilation), (name, branch) in zip(branches, layer.dilated.items(), strict=True):
        assert name == f"k{size}_r{dilation}"
        conv, norm = branch.get_submodule("conv"), branch.get_submodule("norm")
        assert isinstance(conv, nn.Conv2d)
        padding = dilation * (size - 1) // 2
        expected = expected + norm(F.conv2d(x, conv.weight, padding=padding, dilation=dilation, groups=3))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    merge(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_the_table_has_the_published_rows() -> None:
    assert {size: branch_table(size) for size in range(5, 19, 2)} == PUBLISHED_BRANCHES
    assert [spans(size) for size in (7, 13, 15, 17)] == [
        [5, 5, 7],
        [5, 13, 7, 9, 11],
        [5, 13, 7, 11, 15],
        [5, 17, 9, 11, 15],
    ]


@pytest.mark.parametrize("kernel_size", [19, 21, 31, 49, 51, 101, 255])
def test_beyond_the_table_sizes_are_spread_from_five_to_the_large_kernel(kernel_size: int) -> None:
    sizes = sorted(spans(kernel_size))
    assert sizes[0] == 5
    assert sizes[-1] in (kernel_size, kernel_size - 2)
    quarter = (kernel_size - 5) / 4
    small = sorted(2 * r + 1 for k, r in branch_table(kernel_size) if k == 3)
    assert all(abs(size - (5 + part * quarter)) <= 1 for part, size in zip((1, 2, 3), small, strict=True))
    assert len(set(branch_table(kernel_size))) == 5


@pytest.mark.parametrize("kernel_size", SIZES)
def test_the_sets_of_the_ablation_are_made_from_the_dilated_one(kernel_size: int) -> None:
    assert branch_table(kernel_size, "none") == ()
    assert branch_table(kernel_size, "same_size") == tuple((k, 1) for k, _ in branch_table(kernel_size))
    assert branch_table(kernel_size, "same_equivalent_size") == tuple((span, 1) for span in spans(kernel_size))
    assert branch_table(13, "same_equivalent_size") == ((5, 1), (13, 1), (7, 1), (9, 1), (11, 1))


@pytest.mark.parametrize("branch_set", BRANCH_SETS)
@pytest.mark.parametrize("kernel_size", [5, 7, 13, 31])
def test_every_set_merges_and_equal_branches_are_each_their_own(kernel_size: int, branch_set: BranchSet) -> None:
    layer = randomise(DilatedReparamConv2d(3, kernel_size, branch_set=branch_set, dtype=torch.float64))
    assert len(layer.dilated) == len(branch_table(kernel_size, branch_set))
    if (kernel_size, branch_set) == (13, "same_size"):
        assert list(layer.dilated) == ["k5_r1", "k7_r1", "k3_r1", "k3_r1_2", "k3_r1_3"]
    x = noise(2, 3, 12, 10, dtype=torch.float64)
    expected = layer(x)
    assert merge(layer, x).relative_error < 1e-12
    assert layer.large.conv.weight.shape[2:] == (kernel_size, kernel_size)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


def test_a_set_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="Expected the name of a branch set, but got 'dilate': did you mean 'dilated'"):
        DilatedReparamConv2d(3, 13, branch_set="dilate")  # pyright: ignore[reportArgumentType]


def test_the_stated_example_is_what_the_rule_gives() -> None:
    assert spans(31) == [5, 29, 11, 19, 25]
    assert "For K = 31 these span 5, 29, 11, 19, 25." in " ".join(str(branch_table.__doc__).split())


def test_a_kernel_of_a_hundred_merges_in_double_precision() -> None:
    layer = randomise(DilatedReparamConv2d(2, 101, dtype=torch.float64))
    assert merge(layer, noise(1, 2, 9, 120, dtype=torch.float64)).relative_error < 1e-12


def test_every_parameter_gets_a_gradient_and_half_of_the_merge_can_be_done_before() -> None:
    layer = randomise(DilatedReparamConv2d(3, 13, dtype=torch.float64)).train()
    x = noise(2, 3, 9, 9, dtype=torch.float64)
    layer(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in layer.parameters())
    expected = layer.eval()(x)
    layer.large.reparameterize()
    assert not layer.is_merged
    assert fold(layer.dilated["k7_r2"]) == [""]
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    layer.reparameterize()
    assert layer.is_merged
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_merging_again_changes_nothing() -> None:
    layer = randomise(DilatedReparamConv2d(3, 7))
    merge(layer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert merge(layer).unit_errors == ()
    layer.reparameterize()
    after = layer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_merged_layer_keeps_type_mode_and_requires_grad() -> None:
    layer = randomise(DilatedReparamConv2d(3, 7).bfloat16()).requires_grad_(False)
    wide = randomise(DilatedReparamConv2d(3, 7))
    wide.load_state_dict(layer.state_dict())
    merge(layer)
    merge(wide)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    assert not any(module.training for module in layer.modules())
    # One rounding, at the end.
    assert torch.equal(layer.large.conv.weight, wide.large.conv.weight.bfloat16())
    assert all(parameter.requires_grad for parameter in wide.parameters())


def test_training_mode_is_refused() -> None:
    layer = DilatedReparamConv2d(3, 7)
    text = "Expected a network in evaluation mode for merging, but got one in training mode (the module itself)"
    with pytest.raises(InputError, match=re.escape(text)):
        layer.reparameterize()
    assert not layer.is_merged


def test_the_layer_is_what_tools_look_for() -> None:
    layer = DilatedReparamConv2d(3, 13)
    assert isinstance(layer, Reparameterizable)
    parent = randomise(nn.ModuleDict({"a": layer}).double())
    x = noise(1, 3, 9, 9, dtype=torch.float64)
    expected = layer(x)
    theirs = reparameterize_model(parent)
    torch.testing.assert_close(theirs["a"](x), expected, rtol=1e-12, atol=1e-12)  # pyright: ignore[reportIndexIssue]
    assert len(list(theirs.parameters())) == 2
    with torch.device("meta"):
        assert all(value.is_meta for value in DilatedReparamConv2d(3, 13).state_dict().values())


def test_the_example_of_a_layer_is_larger_than_its_kernel() -> None:
    layer = DilatedReparamConv2d(4, 7, dtype=torch.float64)
    example = layer.example_input()
    assert example.shape == (1, 4, 14, 14)
    assert example.dtype == torch.float64
    assert torch.equal(example, layer.example_input())


@pytest.mark.parametrize(
    ("kernel_size", "branches", "text"),
    [
        (8, None, "Expected an odd kernel size, but got 8: use 9."),
        (-3, None, "Expected an odd kernel size, but got -3: use 1."),
        (8, ((3, 1),), "Expected an odd kernel size, but got 8: use 9."),
        (
            9,
            ((3, 1), (4, 2)),
            "Expected branches (k, r) of odd k and positive r with (k - 1) r + 1 at most 9, but got (4, 2): "
            "use a smaller odd size, or a smaller dilation.",
        ),
        (9, ((3, 5),), "at most 9, but got (3, 5): use a smaller"),
        (9, ((3, 0),), "positive r with (k - 1) r + 1 at most 9, but got (3, 0): use"),
        (9, ((-1, 1),), "but got (-1, 1): use"),
        (
            9,
            ((3, 2), (5, 1), (3, 2)),
            "Expected branches that differ, but got [(3, 2), (5, 1), (3, 2)]: "
            "give each of them once: two that are equal are one.",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kernel_size: int, branches: tuple[Branch, ...] | None, text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        DilatedReparamConv2d(4, kernel_size, branches=branches)


def test_the_table_refuses_an_even_size() -> None:
    with pytest.raises(InputError, match=re.escape("Expected an odd kernel size, but got 0: use 1.")):
        branch_table(0)
