from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support.random_statistics import randomise
from torch import Tensor, nn

from widefield import merge
from widefield._core.errors import InputError
from widefield.models.unireplknet import UniRepLKNet, UniRepLKNetBlock
from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.nn.dilated_reparam_conv import DilatedReparamConv2d
from widefield.nn.response_norm import GlobalResponseNorm
from widefield.reparam import Reparameterizable, fold

LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5}


def trained(model: Any) -> Any:
    """BatchNorms, layer scales and response norms as after a training, of order 1."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, UniRepLKNetBlock) and module.gamma is not None:
            nn.init.normal_(module.gamma)
        if isinstance(module, GlobalResponseNorm):
            nn.init.normal_(module.gamma)
            assert module.beta is not None
            nn.init.normal_(module.beta)
    return randomise(model)


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    arguments = {"channels": (8, 8, 16, 16), "depths": (1, 1, 2, 1), "kernel_sizes": (3, 13, (13, 3), 13)}
    return UniRepLKNet(**{**arguments, "num_classes": 3, **options})


def noise(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("kernel_size", [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 31, 51])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", LIMIT)
def test_a_merged_block_is_the_same_function(kernel_size: int, layout: torch.memory_format, dtype: torch.dtype) -> None:
    block = trained(UniRepLKNetBlock(12, kernel_size, dtype=dtype)).to(memory_format=layout)
    x = noise(2, 12, 11, 9, dtype=dtype).contiguous(memory_format=layout)
    with torch.no_grad():
        branched = block(x) - x
        report = merge(block, x)
        merged = block(x) - x
    assert block.is_merged
    assert report.relative_error < LIMIT[dtype]
    assert (merged - branched).abs().max() <= LIMIT[dtype] * branched.abs().max()
    names = dict(block.named_parameters())
    assert not any("norm" in name for name in names if name != "response_norm.gamma")
    assert "gamma" not in names
    spatial = [name for name in names if name.startswith("large_kernel")]
    prefix = "large_kernel.large.conv" if kernel_size >= 7 else "large_kernel"
    assert spatial == ([f"{prefix}.weight", f"{prefix}.bias"] if kernel_size else [])


@pytest.mark.parametrize("kernel_size", [0, 3, 13])
def test_a_block_without_a_layer_scale_merges_too(kernel_size: int) -> None:
    block = trained(UniRepLKNetBlock(8, kernel_size, layer_scale=None, dtype=torch.float64))
    assert block.gamma is None
    assert merge(block, noise(2, 8, 9, 9, dtype=torch.float64)).relative_error < 1e-12


def test_what_is_sized_by_kernel_is_what_runs() -> None:
    assert isinstance(UniRepLKNetBlock(8, 0).large_kernel, nn.Identity)
    assert isinstance(UniRepLKNetBlock(8, 0).norm, nn.Identity)
    for size in (3, 5):
        plain = UniRepLKNetBlock(8, size).large_kernel
        assert isinstance(plain, DepthwiseConv2d)
        assert plain.bias is None
    for size in (7, 31):
        assert isinstance(UniRepLKNetBlock(8, size).large_kernel, DilatedReparamConv2d)


@pytest.mark.parametrize("dtype", LIMIT)
def test_a_whole_network_merges_in_the_evaluation_form_and_only_once(dtype: torch.dtype) -> None:
    model = trained(small(dtype=dtype))
    x = noise(2, 3, 64, 64, dtype=dtype)
    report = merge(model, x)
    assert report.relative_error < LIMIT[dtype]
    assert {unit.name for unit in report.unit_errors} == {
        "stages.0.blocks.0",
        "stages.1.blocks.0",
        "stages.2.blocks.0",
        "stages.2.blocks.1",
        "stages.3.blocks.0",
    }
    assert not any(module.training for module in model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert merge(model, x).unit_errors == ()
    for block in model.modules():
        if isinstance(block, UniRepLKNetBlock):
            block.reparameterize()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_large_kernels_can_be_merged_before_the_rest() -> None:
    model = trained(small(dtype=torch.float64))
    x = noise(2, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    names = fold(model, where=lambda name, module: isinstance(module, DilatedReparamConv2d))
    assert names == [f"stages.{stage}.blocks.0.large_kernel" for stage in (1, 2, 3)]
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)
    assert len(merge(model, x).unit_errors) == 5
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)


def test_low_precision_keeps_its_type_and_requires_grad() -> None:
    block = trained(UniRepLKNetBlock(8, 13)).bfloat16().requires_grad_(False)
    x = noise(2, 8, 9, 9, dtype=torch.bfloat16)
    report = merge(block, x)
    assert {parameter.dtype for parameter in block.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in block.parameters())
    # Three digits, lost in a few places.
    assert report.relative_error < 0.05
    assert isinstance(block, Reparameterizable)


def test_training_mode_is_refused() -> None:
    block = UniRepLKNetBlock(8, 13)
    text = "Expected a network in evaluation mode for merging, but got one in training mode (the module itself)"
    with pytest.raises(InputError, match=re.escape(text)):
        block.reparameterize()
    assert not block.is_merged
    block.eval().large_kernel.train()
    with pytest.raises(InputError, match=re.escape("(the module 'large_kernel')")):
        block.reparameterize()


@pytest.mark.parametrize("merged", [False, True])
def test_every_parameter_gets_a_gradient(merged: bool) -> None:
    model = trained(small(kernel_sizes=(0, 7, (31, 5), 13), drop_path_rate=0.0))
    if merged:
        fold(model)
    model(noise(4, 3, 64, 64)).square().sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []
