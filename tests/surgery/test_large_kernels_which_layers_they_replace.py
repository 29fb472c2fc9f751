from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
import torch.fx
from support.random_statistics import randomise
from timm.layers import Conv2dSame
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from widefield import merge
from widefield._core.errors import InputError
from widefield.models._convnext import ConvNeXtBlock
from widefield.nn import ConvNorm2d, DepthwiseConv2d
from widefield.reparam import Reparameterizable
from widefield.surgery import METHODS, EnlargedConv2d, enlarge

DEPTHWISE = {
    "plain": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "without a bias": nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False),
    "strided": nn.Conv2d(4, 4, 3, stride=(2, 3), padding=1, groups=4),
    "dilated": nn.Conv2d(4, 4, 3, dilation=(2, 1), padding=(2, 1), groups=4),
    "rectangular": nn.Conv2d(4, 4, (1, 5), padding=(0, 2), groups=4),
    "padded by name": nn.Conv2d(4, 4, 3, padding="same", groups=4),
    "ours": DepthwiseConv2d(4, 7, stride=2),
    "of TensorFlow": Conv2dSame(4, 4, 3, stride=2, groups=4),
    "of TensorFlow at stride 1": Conv2dSame(4, 4, 3, groups=4, dilation=2),
    "of TensorFlow at stride 3": Conv2dSame(4, 4, 3, stride=3, groups=4),
}
ORDINARY = {
    "ordinary": nn.Conv2d(4, 6, 3, padding=1),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2, stride=2),
    "several kernels for a channel": nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "single tap": nn.Conv2d(4, 3, 1, padding="valid"),
    "ordinary of TensorFlow": Conv2dSame(4, 6, 5, stride=2, dilation=2),
}


def everything(name: str, conv: nn.Module) -> bool:
    return True


def learned(layer: nn.Module) -> None:
    """Give every parameter a value as after some training."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(parameter))


@pytest.mark.parametrize("size", [(16, 16), (17, 13), (5, 22)])
@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in DEPTHWISE for method in METHODS]
    + [(kind, method) for kind in ORDINARY for method in ("dense", "dilated")],
)
def test_the_layer_computes_the_same_then_learns_and_merges(kind: str, method: str, size: tuple[int, int]) -> None:
    conv = {**DEPTHWISE, **ORDINARY}[kind]
    model = nn.Sequential(copy.deepcopy(conv)).double().eval()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    before = model(x)
    enlarge(model, 11, method, where=everything)  # type: ignore[arg-type]
    layer = model[0]
    assert isinstance(layer, EnlargedConv2d)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    learned(layer)
    assert merge(model, x).relative_error < 1e-12
    plain = model[0]
    assert [tuple(p.shape[2:]) for p in plain.parameters()] == [(11, 11)] + [()] * (conv.bias is not None)
    assert list(plain.state_dict()) == list(conv.state_dict())
    assert plain.groups == conv.groups
    assert plain.stride == conv.stride
    assert isinstance(plain, Conv2dSame) == (kind in ("of TensorFlow", "of TensorFlow at stride 3", *[*ORDINARY][-1:]))


def test_without_a_branch_the_old_kernel_lies_in_the_large_one() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    old = model[0].weight.detach().clone()  # type: ignore[union-attr]
    enlarge(model, 7, "dense", branch=False)
    state = model.state_dict()
    assert list(state) == ["0.bias", "0.kernel.large"]
    assert torch.equal(state["0.kernel.large"][..., 2:5, 2:5], old)
    beside = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    enlarge(beside, 7, "dense")
    assert list(beside.state_dict()) == ["0.bias", "0.kernel.large", "0.kernel.branches.0"]
    assert not beside.state_dict()["0.kernel.large"].any()


def test_the_old_kernel_takes_the_place_of_the_branch_of_its_size() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Conv2d(4, 4, 1, groups=4))
    enlarge(model, 13, "dilated", where=everything)
    sizes = [[p.shape[-1] for n, p in layer.named_parameters() if "branches" in n] for layer in model]
    assert sizes == [[5, 7, 3, 3, 3], [1, 5, 7, 3, 3, 3]]


def test_options_shape_stripes_and_cells() -> None:
    for width, shapes in ((None, [(13, 5), (5, 13), (5, 5)]), (7, [(13, 7), (7, 13), (7, 7)])):
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False))
        enlarge(model, 13, "decomposed", stripe_width=width)
        assert [tuple(p.shape[2:]) for p in model.parameters()] == shapes
    for radius, cells in ((None, 9), (4, 11), (1, 7)):
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False))
        enlarge(model, 13, "peripheral", centre_radius=radius)
        assert [tuple(p.shape[2:]) for p in model.parameters()] == [(cells, cells)]


def test_to_other_code_the_layer_is_a_convolution_whose_weight_is_the_sum() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    enlarge(model, 7, "dilated")
    layer = model[0]
    learned(layer)
    assert isinstance(layer, nn.Conv2d)
    assert isinstance(layer, Reparameterizable)
    assert (layer.kernel_size, layer.padding, layer.dilation) == ((7, 7), (3, 3), (1, 1))
    x = torch.randn(1, 4, 9, 9)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias, padding=3, groups=4)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    layer.weight = nn.Parameter(layer.weight.detach())
    assert layer.is_merged  # type: ignore[union-attr]
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


def test_merging_in_place_is_done_once_and_not_in_training_mode() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    enlarge(model, 7, "dilated")
    layer = model[0]
    assert isinstance(layer, EnlargedConv2d)
    for action in (layer.reparameterize, layer.fuse):
        with pytest.raises(InputError, match=re.escape("one in training mode (the module itself): call model.eval()")):
            action()
    assert not layer.is_merged
    layer.eval().reparameterize()
    weight = layer.weight
    assert weight.requires_grad
    layer.reparameterize()
    assert layer.weight is weight
    with pytest.raises(AttributeError, match="no attribute 'kernl'"):
        _ = layer.kernl


def test_a_norm_in_the_same_sequence_and_timms_own_merge_take_the_sum() -> None:
    for act in (lambda model: merge(model, torch.randn(1, 4, 9, 9).double()), reparameterize_model):
        model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.GELU()).double()
        x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
        randomise(model)
        enlarge(model, 7, "dilated")
        learned(model[0])
        expected = model(x)
        result = act(model)
        merged = result if isinstance(result, nn.Module) else model
        torch.testing.assert_close(merged(x), expected, rtol=1e-12, atol=1e-12)
        plain = merged[0]  # type: ignore[index]
        assert isinstance(plain, DepthwiseConv2d)
        assert all(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize(
    "unit",
    [
        ConvNorm2d(4, 4, 3, depthwise=True, activation=nn.GELU),
        ConvNeXtBlock(4, DepthwiseConv2d(4, 3), layer_scale=0.5),
    ],
    ids=lambda unit: type(unit).__name__,
)
def test_layers_below_a_block_that_merges_by_itself_are_merged_by_it(unit: nn.Module) -> None:
    model = randomise(nn.Sequential(copy.deepcopy(unit)).double())
    x = torch.randn(1, 4, 12, 12, dtype=torch.float64)
    before = model(x)
    report = enlarge(model, 9)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    layer = model.get_submodule(report.layers[0].name)
    learned(layer)
    assert merge(model, x).relative_error < 1e-12
    merged = model.get_submodule(report.layers[0].name)
    assert isinstance(merged, nn.Conv2d)
    assert [tuple(p.shape) for p in merged.parameters()] == [(4, 1, 9, 9), (4,)]


def test_one_layer_in_two_places_stays_one() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    model = nn.Sequential(conv, nn.Sequential(nn.GELU(), conv)).double().eval()
    x: Tensor = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    before = model(x)
    assert [layer.name for layer in enlarge(model, 7).layers] == ["0"]
    assert model[0] is model.get_submodule("1.1")
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert merge(model, x).relative_error < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_a_symbolic_trace_and_a_pickle_compute_the_same(method: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), Conv2dSame(4, 4, 3, stride=2, groups=4)).eval()
    enlarge(model, 7, method)  # type: ignore[arg-type]
    learned(model)
    x = torch.randn(1, 4, 9, 9)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))
