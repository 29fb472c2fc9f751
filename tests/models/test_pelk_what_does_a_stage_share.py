from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
import torch.fx
from support.random_statistics import randomise
from timm.models._manipulate import group_parameters
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from widefield import merge
from widefield._core.errors import InputError
from widefield.models.pelk import PartialConv2d, PeLK, PeLKBlock, PeLKStage
from widefield.nn.peripheral_conv import PeripheralConv2d
from widefield.ops import SharingGrid

SMALL: dict[str, Any] = {"channels": (8, 12, 16, 20), "depths": (1, 2, 4, 1), "kernel_sizes": (21, 13, 9, 5)}
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}
FORMS = [("kernel", False), ("kernel", True), ("border", False), ("border", True), ("none", False), ("none", True)]


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    model: Any = PeLK(**{**SMALL, "num_classes": 6, "layer_scale": 1.0, **options})
    for stage in model.stages:
        # Large enough to be seen in the output.
        if stage.embedding is not None:
            nn.init.normal_(stage.embedding)
    return randomise(model)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1), dtype=dtype)


def distance(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_the_first_channels_are_convolved_and_the_others_stay_in_place() -> None:
    conv = PeripheralConv2d(3, 7, position="kernel")
    x, h = torch.randn(2, 8, 9, 6), torch.randn(3, 7, 7)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = PartialConv2d(conv)(x.contiguous(memory_format=layout), h)
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y[:, :3], conv(x[:, :3], h))
        assert torch.equal(y[:, 3:], x[:, 3:])


@pytest.mark.parametrize(("position", "branch_norm"), FORMS)
@pytest.mark.parametrize("is_saving", [False, True])
def test_every_parameter_gets_a_gradient(position: Any, branch_norm: bool, is_saving: bool) -> None:
    model = make(position=position, branch_norm=branch_norm, dtype=torch.float64).train()
    model.set_grad_checkpointing(is_saving)
    model(images(torch.float64)).square().mean().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    embeddings = [grad for name, grad in grads.items() if grad is not None and "embedding" in name]
    assert len(embeddings) == (0 if position == "none" else 4)
    is_cancelled = position == "kernel" and branch_norm
    assert all((grad.abs().max() < 1e-14) == is_cancelled for grad in embeddings)


@pytest.mark.parametrize("position", ["kernel", "border"])
def test_checkpointing_gives_the_same_gradients(position: Any) -> None:
    plain, saved = make(position=position, branch_norm=True), make(position=position, branch_norm=True)
    saved.set_grad_checkpointing()
    for model in (plain, saved):
        model.train()(images()).square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saved.named_parameters(), strict=True):
        assert a.grad is not None
        assert b[1].grad is not None
        assert torch.equal(a.grad, b[1].grad), name


def test_one_embedding_serves_all_blocks_of_a_stage() -> None:
    model = make()
    names = [name for name, _ in model.named_parameters() if "embedding" in name]
    assert names == [f"stages.{index}.embedding" for index in range(4)]
    stage = model.stages[2]
    assert isinstance(stage, PeLKStage)
    assert stage.embedding is not None
    assert stage.embedding.shape == (6, 9, 9)
    x = torch.randn(1, 12, 10, 8)
    expected = stage.downsample(x)
    for block in stage.blocks:
        expected = block(expected, stage.embedding)
    torch.testing.assert_close(stage(x), expected)


@pytest.mark.parametrize(("position", "branch_norm"), FORMS)
@pytest.mark.parametrize("dtype", LIMIT)
@torch.no_grad()
def test_the_whole_network_merges_to_plain_convolutions(position: Any, branch_norm: bool, dtype: torch.dtype) -> None:
    model = make(position=position, branch_norm=branch_norm, dtype=dtype)
    x = images(dtype)
    expected = model(x)
    report = merge(model, x)
    assert [unit.name for unit in report.unit_errors] == [f"stages.{index}" for index in range(4)]
    assert max(unit.relative_error for unit in report.unit_errors) < LIMIT[dtype]
    assert all(stage.is_merged for stage in model.stages)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    wanted = {"merged.weight", "merged.bias", *(["merged_border.weight"] if position == "border" else [])}
    layers = [module for module in model.modules() if isinstance(module, PeripheralConv2d)]
    assert all({name for name, _ in layer.named_parameters()} == wanted for layer in layers)
    assert not any("embedding" in name or "gamma" in name for name in model.state_dict())
    for layout in (torch.contiguous_format, torch.channels_last):
        assert distance(model(x.contiguous(memory_format=layout)), expected) < LIMIT[dtype]
    # What was folded holds for images of other sizes too.
    other = torch.randn(1, 3, 96, 32, generator=torch.Generator().manual_seed(2), dtype=dtype)
    assert distance(model(other), make(position=position, branch_norm=branch_norm, dtype=dtype)(other)) < LIMIT[dtype]
    before = copy.deepcopy(model.state_dict())
    assert merge(model, x).unit_errors == ()
    for stage in model.stages:
        stage.reparameterize()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [PeripheralConv2d, PartialConv2d, PeLKBlock, PeLKStage])
@pytest.mark.parametrize(("position", "branch_norm"), FORMS)
@torch.no_grad()
def test_a_part_alone_merges_and_the_rest_later(kind: type[nn.Module], position: Any, branch_norm: bool) -> None:
    model, whole = (make(position=position, branch_norm=branch_norm, dtype=torch.float64) for _ in range(2))
    x = images(torch.float64)
    expected = model(x)
    first = next(name for name, module in model.named_modules() if isinstance(module, kind))
    assert merge(model, x, where=lambda name, _: name == first).worst_unit is not None
    assert model.get_submodule(first).is_merged
    assert distance(model(x), expected) < 1e-12
    report = merge(model, x, where=lambda _, module: isinstance(module, kind))
    assert all(module.is_merged for module in model.modules() if isinstance(module, kind))
    assert report.relative_error < 1e-12
    merge(model, x)
    merge(whole, x)
    assert distance(model(x), expected) < 1e-12
    assert list(model.state_dict()) == list(whole.state_dict())
    for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_block_alone_takes_its_embedding_when_it_is_given() -> None:
    stage = make(dtype=torch.float64).stages[1]
    assert isinstance(stage, PeLKStage)
    x = torch.randn(1, 8, 16, 12, dtype=torch.float64)
    expected = stage(x)
    block = stage.blocks[0]
    assert isinstance(block, PeLKBlock)
    block.reparameterize(stage.embedding)
    assert distance(stage(x), expected) < 1e-12
    stage.reparameterize()
    assert distance(stage(x), expected) < 1e-12


@torch.no_grad()
def test_timms_own_walk_merges_the_same() -> None:
    model = make(dtype=torch.float64)
    theirs: Any = reparameterize_model(model)
    assert all(stage.is_merged for stage in theirs.stages)
    assert distance(theirs(images(torch.float64)), model(images(torch.float64))) < 1e-12


@torch.no_grad()
def test_bfloat16_merges_to_bfloat16() -> None:
    model = make().bfloat16()
    expected = model.double()(images(torch.float64))
    model.bfloat16()
    branched = model(images(torch.bfloat16)).double()
    merge(model, images(torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    merged = model(images(torch.bfloat16)).double()
    assert distance(merged, expected) < 2 * distance(branched, expected) + 0.02


def test_training_mode_is_refused() -> None:
    model = make().train()
    text = "Expected a network in evaluation mode for merging, but got one in training mode"
    for part in (model.stages[0], model.stages[0].blocks[0], model.stages[0].blocks[0].large_kernel):
        with pytest.raises(InputError, match=re.escape(text)):
            part.reparameterize()
        assert not part.is_merged


@pytest.mark.parametrize("position", ["kernel", "border"])
@pytest.mark.parametrize("merged", [False, True])
def test_a_symbolic_trace_gives_the_same(position: Any, merged: bool) -> None:
    model = make(position=position)
    if merged:
        merge(model, images())
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images()), model(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("position", ["kernel", pytest.param("border", marks=pytest.mark.slow)])
def test_training_compiles_to_one_graph(position: Any) -> None:
    torch._dynamo.reset()
    sizes = {"channels": (8, 12), "depths": (1, 1), "kernel_sizes": (9, 5)}
    plain, other = (make(position=position, **sizes).train() for _ in range(2))
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    plain(images()).sum().backward()
    compiled(images()).sum().backward()
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)
    torch._dynamo.reset()


def test_the_embedding_learns_at_the_rate_of_the_first_blocks() -> None:
    model: Any = timm.create_model("pelk_a", device="meta")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert [layers[f"stages.{index}.embedding"] for index in range(4)] == [1, 2, 3, 5]
    assert layers["stages.2.blocks.2.gamma"] == 3
    assert layers["head.fc.weight"] == layers["norm.weight"] == 6
    assert model.no_weight_decay() == {f"stages.{index}.embedding" for index in range(4)}
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse["stages.2.embedding"] == coarse["stages.2.blocks.0.gamma"]


def test_grids_are_an_argument_for_each_stage() -> None:
    given = SharingGrid.from_half([8, 2, 1])
    model = make(grids=(given, None, SharingGrid.dense(9), None), small_kernel_size=None)
    grids = [stage.blocks[0].large_kernel.conv.grid for stage in model.stages]
    assert grids == [given, SharingGrid.exponential(13), SharingGrid.dense(9), SharingGrid.exponential(5)]
    assert model(images()).shape == (2, 6)


def test_a_stage_with_a_kernel_no_larger_than_the_small_one_has_no_small_one() -> None:
    smalls = [stage.blocks[0].large_kernel.conv.small is not None for stage in make().stages]
    assert smalls == [True, True, True, False]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"depths": (1, 1, 1)},
            "Expected channels, depths, kernel sizes and grids of as many stages, but got 4, 3, 4, 4: "
            "give one entry for each stage.",
        ),
        ({"grids": (None,)}, "kernel sizes and grids of as many stages, but got 4, 4, 4, 1: give"),
        (
            {"conv_ratio": 0.1},
            "Expected a share of convolved channels that is at least one channel and at most all, "
            "but got 0.1 of 8, 12, 16, 20: use a conv_ratio between 0 and 1.",
        ),
        ({"conv_ratio": 1.5}, "but got 1.5 of 8, 12, 16, 20: use a conv_ratio between 0 and 1."),
        ({"kernel_sizes": (21, 12, 9, 5)}, "Expected an odd kernel size, but got 12: use 13."),
        ({"position": "pixel"}, "Expected the name of a position, but got 'pixel'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=re.escape(text)):
        make(**options)
