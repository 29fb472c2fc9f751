from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.library import opcheck

from widefield.ops import use_backend
from widefield.ops.peripheral_conv import peripheral_conv2d, registration
from widefield.ops.peripheral_kernel import SharingGrid

ROWS, COLUMNS = SharingGrid((2, 1, 1, 3)), SharingGrid((1, 3, 1))
SETTINGS = (ROWS.sizes, COLUMNS.sizes, "", "")


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return draw(2, 2, 4, 3), draw(2, 1, 4, 3, seed=1), draw(2, seed=2), draw(2, 7, 5, seed=3)


def convolve(
    x: Tensor, cells: Tensor, bias: Tensor | None, embedding: Tensor | None, *, form: str | None = None
) -> Tensor:
    return peripheral_conv2d(x, cells, bias, rows=ROWS, columns=COLUMNS, embedding=embedding, form=form)


def loss(cells: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    return convolve(x, cells, bias, None).square().sum()


@pytest.mark.parametrize("form", [None, "expanded", "spectral", "box_rows", "summed_area"])
def test_first_and_second_derivatives_are_right(form: str | None) -> None:
    inputs = tuple(value.requires_grad_() for value in tensors())
    assert gradcheck(lambda *values: convolve(*values, form=form), inputs)
    assert gradgradcheck(lambda *values: convolve(*values, form=form), inputs, fast_mode=True)


def test_derivatives_equal_those_of_the_expanded_kernel_within_a_forced_backend() -> None:
    inputs = tuple(value.requires_grad_() for value in tensors())
    with use_backend("reference"):
        forced = convolve(*inputs)
    free = torch.autograd.grad(convolve(*inputs).square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(forced.square().sum(), inputs), free)


@pytest.mark.parametrize("mapped", [(0, 0, 0), (0, None, None), (None, 0, None), (None, None, 0), (None, 0, 0)])
def test_functions_of_torch_func_map_and_differentiate_it(mapped: tuple[int | None, ...]) -> None:
    x, cells, bias, _ = tensors()
    values = (cells, x, bias)
    many = tuple(
        value if dim is None else draw(3, *value.shape, seed=9) for value, dim in zip(values, mapped, strict=True)
    )
    got = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=mapped)(*many)
    for index in range(3):
        one = tuple(value if dim is None else value[index] for value, dim in zip(many, mapped, strict=True))
        leaves = tuple(value.clone().requires_grad_() for value in one)
        expected = torch.autograd.grad(loss(*leaves), leaves)
        for mine, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(mine[index], theirs)


def test_per_sample_gradients_can_be_differentiated_again() -> None:
    x, cells, bias, _ = tensors()
    images = x[:, None]
    norms = lambda c: vmap(grad(loss), in_dims=(None, 0, None))(c, images, bias).square().sum()  # noqa: E731
    leaf = cells.clone().requires_grad_()
    each = [torch.autograd.grad(loss(leaf, image, bias), leaf, create_graph=True)[0] for image in images]
    total = torch.stack(each).square().sum()
    torch.testing.assert_close(grad(norms)(cells), torch.autograd.grad(total, leaf)[0])


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_graph_gives_the_same_gradients(dynamic: bool) -> None:
    inputs = tuple(value.requires_grad_() for value in tensors())
    function = torch.compile(convolve, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    compiled, plain = function(*inputs), convolve(*inputs)
    torch.testing.assert_close(compiled, plain)
    expected = torch.autograd.grad(plain.square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(compiled.square().sum(), inputs), expected)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        _, cells, bias, embedding = tensors()
        self.cells, self.bias, self.embedding = nn.Parameter(cells), nn.Parameter(bias), nn.Parameter(embedding)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.cells, self.bias, self.embedding)


def test_an_exported_layer_takes_any_map_and_can_be_trained() -> None:
    layer = Layer()
    sizes = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}}
    exported = torch.export.export(layer, (tensors()[0],), dynamic_shapes=sizes).module()
    image = draw(3, 2, 9, 8)
    torch.testing.assert_close(exported(image), layer(image))
    layer(image).square().sum().backward()
    exported(image).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(exported.get_parameter(name).grad, parameter.grad)


# torch's tester itself calls deprecated functions of torch; the operators are what is checked.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_torch_finds_nothing_wrong_with_the_three_operators(layout: torch.memory_format) -> None:
    def leaf(value: Tensor) -> Tensor:
        return value.float().requires_grad_()

    x, cells, bias, _ = (leaf(value) for value in tensors())
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    image: Any = draw(2, 2, 4, 3, seed=5).float().contiguous(memory_format=layout).requires_grad_()
    opcheck(registration.forward, (x, cells, bias, *SETTINGS))
    opcheck(registration.forward, (x, cells, None, *SETTINGS))
    opcheck(registration.grad_input, (image, cells, *SETTINGS))
    opcheck(registration.grad_cells, (image, x, *SETTINGS))


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, cells, bias, _ = tensors()
    called: list[str] = []
    for name in ("grad_input", "grad_cells"):
        operator = getattr(registration, name)
        monkeypatch.setattr(registration, name, lambda *a, _n=name, _o=operator: called.append(_n) or _o(*a))
    leaf = cells.clone().requires_grad_()
    torch.autograd.grad(loss(leaf, x, bias), leaf)
    assert called == ["grad_cells"]
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(loss(cells, leaf, bias), leaf)
    assert called == ["grad_cells", "grad_input"]
