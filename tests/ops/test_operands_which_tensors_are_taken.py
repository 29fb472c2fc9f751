from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.nn import DecomposedConv2d, DepthwiseConv2d, PeripheralConv2d
from widefield.ops import (
    SharingGrid,
    cross_kernel,
    decomposed_conv2d,
    depthwise_conv1d,
    depthwise_conv2d,
    peripheral_conv2d,
    peripheral_kernel,
    sum_cells,
)

GRID = SharingGrid((2, 1, 2))
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "dense": (depthwise_conv2d, [(2, 4, 8, 8), (4, 1, 5, 5)]),
    "peripheral": (lambda x, w: peripheral_conv2d(x, w, rows=GRID), [(2, 4, 8, 8), (4, 1, 3, 3)]),
    "decomposed": (decomposed_conv2d, [(2, 4, 8, 8), (4, 1, 5, 3), (4, 1, 3, 5)]),
}
PACKED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "coo": (Tensor.to_sparse, "Expected dense tensors, but got a tensor of layout torch.sparse_coo"),
    "csr": (lambda x: x[0, 0].to_sparse_csr(), "Expected dense tensors, but got a tensor of layout torch.sparse_csr"),
    "mkldnn": (Tensor.to_mkldnn, "Expected dense tensors, but got a tensor of layout torch._mkldnn"),
    "nested": (
        lambda x: torch.nested.nested_tensor([x[0], x[1]]),
        "Expected tensors of one shape, but got a nested tensor: pad its parts to one size, or call the operator",
    ),
    "jagged": (
        lambda x: torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged),
        "Expected tensors of one shape, but got a nested tensor",
    ),
}
TYPES = {
    torch.float8_e4m3fn: "Expected an input of 16, 32 or 64 bit floating point, but got torch.float8_e4m3fn",
    torch.float8_e5m2: "Expected an input of 16, 32 or 64 bit floating point, but got torch.float8_e5m2",
    torch.complex64: "Expected a floating-point input, but got torch.complex64",
    torch.int8: "Expected a floating-point input, but got torch.int8",
    torch.bool: "Expected a floating-point input, but got torch.bool",
}
pytestmark = pytest.mark.filterwarnings("ignore:.*([Nn]ested|CSR|quantiz).*:UserWarning")


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("place", [0, 1])
def test_packed_tensors_are_refused_in_one_sentence(name: str, kind: str, place: int) -> None:
    function, sizes = FUNCTIONS[name]
    pack, text = PACKED[kind]
    values = [torch.ones(size) for size in sizes]
    function(*values)  # what is remembered of a dense call must not serve a packed one
    values[place] = pack(values[place])
    with pytest.raises(InputError, match=re.escape(text)):
        function(*values)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("is_autocast", [False, True])
def test_types_without_arithmetic_are_refused_in_one_sentence(name: str, dtype: torch.dtype, is_autocast: bool) -> None:
    function, sizes = FUNCTIONS[name]
    with torch.autocast("cpu", enabled=is_autocast), pytest.raises(InputError, match=re.escape(TYPES[dtype])):
        function(*(torch.ones(size).to(dtype) for size in sizes))


def test_a_kernel_of_another_type_is_not_cast_in_silence() -> None:
    x, weight = torch.ones(1, 2, 5, 5), torch.ones(2, 1, 3, 3)
    for dtype in (torch.float8_e5m2, torch.int32):
        with torch.autocast("cpu"), pytest.raises(InputError, match="Expected input, weight and bias of one dtype"):
            depthwise_conv2d(x, weight.to(dtype))


def test_a_quantized_image_is_refused() -> None:
    x = torch.quantize_per_tensor(torch.ones(1, 2, 5, 5), 0.1, 0, torch.qint8)
    with pytest.raises(InputError, match=re.escape("Expected a floating-point input, but got torch.qint8")):
        depthwise_conv2d(x, torch.ones(2, 1, 3, 3))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensors_without_values_give_one_without_values(name: str) -> None:
    function, sizes = FUNCTIONS[name]
    y = function(*(torch.empty(size, device="meta", requires_grad=True) for size in sizes))
    assert (y.shape, y.device.type) == ((2, 4, 8, 8), "meta")
    y.sum().backward()


# torch says that both ways are deprecated; that the second still works is what is checked.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "layer", [DepthwiseConv2d(4, 5), DepthwiseConv2d(4, 31), DecomposedConv2d(4, 13, 3), PeripheralConv2d(4, 13)]
)
def test_a_layer_is_traced_and_not_scripted(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 20, 20)
    layer = layer.eval()
    traced = torch.jit.trace(layer, (x,))  # type: ignore[no-untyped-call]
    for image in (x, torch.randn(3, 4, 31, 26)):
        torch.testing.assert_close(traced(image), layer(image), rtol=1e-4, atol=1e-4)
    traced(x).square().sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(layer, (x,))(x), layer(x), rtol=1e-4, atol=1e-4)  # type: ignore[no-untyped-call]
    with pytest.raises(Exception, match=r"but got torch\.jit\.script, which cannot hold a choice of backends: trace"):
        torch.jit.script(layer)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "function",
    [
        depthwise_conv2d,
        depthwise_conv1d,
        peripheral_conv2d,
        peripheral_kernel,
        sum_cells,
        decomposed_conv2d,
        cross_kernel,
    ],
)
def test_every_function_refuses_to_be_scripted_by_its_name(function: Callable[..., Tensor]) -> None:
    text = f"Expected eager code, torch.compile, torch.export or torch.jit.trace around {function.__name__}, but got"
    with pytest.raises(InputError, match=re.escape(text)):
        torch.jit.script(function)
