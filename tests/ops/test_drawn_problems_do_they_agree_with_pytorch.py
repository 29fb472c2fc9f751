from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

from widefield.ops import SharingGrid, depthwise_conv2d, peripheral_conv2d, peripheral_kernel, use_backend
from widefield.ops.depthwise_conv import registration
from widefield.ops.peripheral_conv import registration as peripheral

MANY = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 10 else []) for seed in range(310)]
FEW = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 3 else []) for seed in range(40)]


class Draw:
    """A problem that PyTorch can run: sizes, spacing, memory formats and views."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        pick = self.random.choice
        self.batch, self.channels = pick([1, 2, 3]), pick([1, 2, 3, 7, 16])
        self.kernel = pick([1, 2, 3, 5, 7, 13, 31]), pick([1, 2, 3, 5, 9, 17, 31])
        self.stride, self.dilation = (pick([1, 1, 2]), pick([1, 1, 3])), (pick([1, 1, 2]), pick([1, 1, 2]))
        self.size = pick([1, 4, 11, 18, 30]), pick([1, 5, 9, 20, 33])
        spans = [gap * (k - 1) + 1 for gap, k in zip(self.dilation, self.kernel, strict=True)]
        least = [max(0, (span - n + 1) // 2) for span, n in zip(spans, self.size, strict=True)]
        self.padding = least[0] + self.random.randint(0, 4), least[1] + self.random.randint(0, 4)

    def tensor(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def image(self, *size: int) -> Tensor:
        way = self.random.choice(["plain", "plain", "channels_last", "sliced", "expanded", "turned"])
        if way == "channels_last":
            return self.tensor(*size).contiguous(memory_format=torch.channels_last)
        if way == "sliced":
            return self.tensor(size[0], size[1], size[2] + 2, 2 * size[3])[:, :, 1:-1, ::2]
        if way == "expanded":
            return self.tensor(1, size[1], size[2], size[3]).expand(size)
        return self.tensor(size[0], size[1], size[3], size[2]).mT if way == "turned" else self.tensor(*size)

    @property
    def spacing(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}


@pytest.mark.parametrize("seed", MANY)
def test_values_gradients_and_formats_are_those_of_pytorch(seed: int) -> None:
    draw = Draw(seed)
    x = draw.image(draw.batch, draw.channels, *draw.size)
    weight, bias = draw.tensor(draw.channels, 1, *draw.kernel), draw.tensor(draw.channels)
    expected = F.conv2d(x, weight, bias, groups=draw.channels, **draw.spacing)
    gradient = draw.image(*expected.shape)
    for backend in ("", "aten", "channels_last", "fft", "dft"):
        mine, theirs = ([t.detach().requires_grad_() for t in (x, weight, bias)] for _ in range(2))
        y = F.conv2d(*theirs, groups=draw.channels, **draw.spacing)
        for _ in range(2):
            if backend:
                with use_backend(backend):
                    actual = depthwise_conv2d(*mine, **draw.spacing)
            else:
                actual = depthwise_conv2d(*mine, **draw.spacing)
            torch.testing.assert_close(actual, expected)
        assert not x.is_contiguous() or actual.is_contiguous()
        for one, other in zip(
            torch.autograd.grad(actual, mine, gradient), torch.autograd.grad(y, theirs, gradient), strict=True
        ):
            torch.testing.assert_close(one, other)


# torch's tester itself calls deprecated functions of torch; the operators are what is checked.
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", FEW)
def test_torch_finds_nothing_wrong_with_the_operators(seed: int) -> None:
    draw = Draw(seed)
    x = draw.image(draw.batch, draw.channels, *draw.size).detach().requires_grad_()
    weight = draw.tensor(draw.channels, 1, *draw.kernel).requires_grad_()
    bias = draw.tensor(draw.channels).requires_grad_()
    backend = draw.random.choice(["", "aten", "channels_last", "fft", "dft"])
    geometry = ([*draw.stride], [*draw.padding], [*draw.dilation], backend)
    y = registration.forward(x, weight, bias, *geometry)
    grad = draw.image(*y.shape).detach().requires_grad_()
    opcheck(registration.forward, (x, weight, draw.random.choice([bias, None]), *geometry))
    opcheck(registration.grad_input, (grad, weight, list(x.shape), *geometry))
    opcheck(registration.grad_weight, (grad, x, list(weight.shape[2:]), *geometry))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("seed", FEW)
def test_torch_finds_nothing_wrong_with_the_peripheral_operators_either(seed: int) -> None:
    draw = Draw(seed)
    pick = draw.random.choice
    rows, columns = (pick([(1,), (2, 1, 2), (3, 1, 1, 1, 3), (1, 1, 1), (5, 2, 1, 2, 7)]) for _ in range(2))
    form = pick(["", "expanded", "spectral", "box_rows", "summed_area"])
    x = draw.image(draw.batch, draw.channels, *draw.size).detach().requires_grad_()
    cells = draw.tensor(draw.channels, 1, len(rows), len(columns)).requires_grad_()
    bias = draw.tensor(draw.channels).requires_grad_()
    grids = SharingGrid(rows), SharingGrid(columns)
    y = peripheral_conv2d(x, cells, bias, rows=grids[0], columns=grids[1], form=form or None)
    torch.testing.assert_close(y, depthwise_conv2d(x, peripheral_kernel(cells, *grids), bias))
    grad = draw.image(*y.shape).detach().requires_grad_()
    settings = ([*rows], [*columns], form, "")
    opcheck(peripheral.forward, (x, cells, pick([bias, None]), *settings))
    opcheck(peripheral.grad_input, (grad, cells, *settings))
    opcheck(peripheral.grad_cells, (grad, x, *settings))
