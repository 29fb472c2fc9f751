from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widefield.nn import DepthwiseConv2d
from widefield.ops import depthwise_conv1d, depthwise_conv2d, use_backend

BACKENDS = pytest.mark.parametrize("backend", ["reference", "aten", "channels_last", "fft", "dft"])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=x.shape[1])


@BACKENDS
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_output_and_the_gradients_lie_as_the_input_does(backend: str, layout: torch.memory_format) -> None:
    x = torch.randn(2, 4, 6, 7).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(4, 1, 3, 3, requires_grad=True)
    with use_backend(backend):
        y = depthwise_conv2d(x, weight)
    dx, dw = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert y.is_contiguous(memory_format=layout)
    assert dx.is_contiguous(memory_format=layout)
    assert dw.is_contiguous()


@BACKENDS
@pytest.mark.parametrize("size", [(0, 3, 5, 5), (2, 0, 5, 5), (0, 0, 5, 5)])
def test_an_empty_batch_or_no_channels_give_empty_outputs_and_zero_gradients(
    backend: str, size: tuple[int, int, int, int]
) -> None:
    x, weight = torch.randn(size, requires_grad=True), torch.randn(size[1], 1, 3, 3, requires_grad=True)
    with use_backend(backend):
        y = depthwise_conv2d(x, weight, torch.randn(size[1]), stride=2)
    assert y.shape == (size[0], size[1], 3, 3)
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape
    assert dw.shape == weight.shape
    assert not dw.any()


def test_an_image_without_rows_in_its_padding_gives_the_bias() -> None:
    x = torch.randn(2, 3, 0, 4, requires_grad=True)
    weight, bias = torch.randn(3, 1, 3, 3, requires_grad=True), torch.randn(3)
    y = depthwise_conv2d(x, weight, bias, padding=2)
    close(y, bias[:, None, None].expand(2, 3, 2, 6))
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape
    assert not dw.any()


@BACKENDS
def test_strided_and_expanded_inputs_are_read_as_they_are(backend: str) -> None:
    weight = torch.randn(4, 1, 5, 3).transpose(2, 3)
    sliced = torch.randn(2, 8, 12, 14)[:, ::2, 1:-1, ::2]
    expanded = torch.randn(1, 4, 1, 9).expand(3, 4, 8, 9)
    for x in (sliced, expanded, sliced.transpose(2, 3)):
        with use_backend(backend):
            close(depthwise_conv2d(x, weight), plain(x, weight))


def test_an_expanded_gradient_is_read_as_it_is() -> None:
    x, weight = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(3, 1, 11, 11, requires_grad=True)
    mine = torch.autograd.grad(depthwise_conv2d(x, weight).sum(), (x, weight))
    theirs = torch.autograd.grad(plain(x, weight).sum(), (x, weight))
    for actual, expected in zip(mine, theirs, strict=True):
        close(actual, expected)


def test_autocast_computes_in_bfloat16_and_keeps_the_type_of_the_parameters_gradients() -> None:
    layer = DepthwiseConv2d(3, 5)
    x = torch.randn(2, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("backend", ["channels_last", "transposed", "fft", "dft", "reference"])
def test_autocast_does_not_reach_into_a_backend(backend: str) -> None:
    x, weight = torch.randn(2, 3, 20, 20), torch.randn(3, 1, 13, 13)
    with use_backend(backend):
        expected = depthwise_conv2d(x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(depthwise_conv2d(x, weight), expected, rtol=0, atol=0)


def test_autocast_does_not_turn_whole_numbers_into_an_image() -> None:
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match=r"Expected a floating-point input, but got torch\.int64"),
    ):
        depthwise_conv2d(torch.ones(1, 1, 3, 3, dtype=torch.int64), torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("padding", ["same", 7])
def test_one_dimension_equals_pytorch(stride: int, dilation: int, padding: str | int) -> None:
    x, weight, bias = torch.randn(2, 3, 21), torch.randn(3, 1, 5), torch.randn(3)
    pads = 2 * dilation if padding == "same" else padding
    assert isinstance(pads, int)
    y = depthwise_conv1d(x, weight, bias, stride=stride, padding=padding, dilation=dilation)  # pyright: ignore[reportArgumentType]
    close(y, F.conv1d(x, weight, bias, stride, pads, dilation, groups=3))


def test_pairs_are_vertical_then_horizontal() -> None:
    x, weight = torch.randn(1, 2, 12, 15), torch.randn(2, 1, 3, 5)
    y = depthwise_conv2d(x, weight, stride=(2, 1), padding=(4, 0), dilation=(1, 3))
    close(y, F.conv2d(x, weight, None, (2, 1), (4, 0), (1, 3), groups=2))


# Dynamo asks torch for the type of a deprecated instance while it traces; the function is what is checked.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_compiled_function_follows_changing_shapes_and_the_backend_around_its_call(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    from widefield.ops.depthwise_conv.reference import ReferenceBackend

    torch._dynamo.reset()

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight).relu()

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 3, 9, 8), (4, 3, 12, 7), (5, 6, 7, 7)):
        x = torch.randn(size).contiguous(memory_format=layout).requires_grad_()
        weight = torch.randn(size[1], 1, 5, 5, requires_grad=True)
        y = compiled(x, weight)
        close(y, function(x, weight))
        for actual, expected in zip(
            torch.autograd.grad(y.sum(), (x, weight)),
            torch.autograd.grad(function(x, weight).sum(), (x, weight)),
            strict=True,
        ):
            close(actual, expected)
    runs: list[int] = []
    original = ReferenceBackend.forward
    monkeypatch.setattr(ReferenceBackend, "forward", lambda *a: runs.append(1) or original(*a))
    x, weight = torch.randn(2, 3, 9, 8).contiguous(memory_format=layout), torch.randn(3, 1, 5, 5)
    with use_backend("reference"):
        close(compiled(x, weight), plain(x, weight).relu())
    assert runs == [1]
    compiled(x, weight)
    assert runs == [1]
    torch._dynamo.reset()


@pytest.mark.filterwarnings("default")
def test_a_module_is_exported_with_a_dynamic_batch() -> None:
    module = nn.Sequential(DepthwiseConv2d(3, 7, bias=False), nn.ReLU(), DepthwiseConv2d(3, 3, stride=2)).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(module, (torch.randn(4, 3, 9, 9),), dynamic_shapes=({0: batch},))
    assert any("depthwise_conv_forward" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(7, 3, 9, 9)
    close(program.module()(x), module(x))


def test_the_meta_device_gives_shapes_alone() -> None:
    layer = DepthwiseConv2d(3, 31, stride=2, device="meta")
    y = layer(torch.empty(2, 3, 225, 224, device="meta"))
    assert y.shape == (2, 3, 113, 112)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.empty(2, 3, 8, 8, device="meta")).shape == (2, 3, 4, 4)
