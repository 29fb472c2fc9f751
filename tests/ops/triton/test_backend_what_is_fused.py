from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.problems import make_case

from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.reference import ReferenceBackend
from widefield.ops.depthwise_conv.triton.backend import convolve
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

SMALL = TileConfig(kernel="rows", block_m=16, block_n=16, block_k=16)
KERNELS = (
    SMALL,
    replace(SMALL, kernel="columns"),
    replace(SMALL, kernel="planes", block_n=32, block_k=32),
    replace(SMALL, kernel="channels_last", channels=4),
)
ACTIVATIONS = {None: lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
PROBLEM = Problem(batch=2, channels=2, height=5, width=9, kernel_size=(3, 5), padding=(1, 2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("config", KERNELS, ids=lambda c: c.kernel)
def test_bias_residual_and_activation_follow_in_this_order(config: TileConfig, activation, device: str) -> None:
    case = make_case(PROBLEM)
    assert case.bias is not None
    residual = torch.randn(case.grad.shape, generator=torch.Generator().manual_seed(1))
    x, weight, bias, added = (t.to(device) for t in (case.x, case.weight, case.bias, residual))
    actual = convolve(x, weight, bias, PROBLEM, "forward", config, activation=activation, residual=added)
    wide = case.double()
    sums = ReferenceBackend().forward(wide.x, wide.weight, wide.bias, PROBLEM) + residual.double()
    torch.testing.assert_close(actual.cpu().double(), ACTIVATIONS[activation](sums), rtol=1e-5, atol=1e-5)


def test_relu_keeps_what_is_not_a_number(device: str) -> None:
    case = make_case(PROBLEM)
    x = torch.full_like(case.x, torch.nan).to(device)
    assert convolve(x, case.weight.to(device), None, PROBLEM, "forward", SMALL, activation="relu").isnan().all()


@pytest.mark.parametrize("config", KERNELS, ids=lambda c: c.kernel)
def test_a_kernel_that_changed_is_expanded_again(config: TileConfig, device: str) -> None:
    case = make_case(PROBLEM, with_bias=False)
    x, weight = case.x.to(device), case.weight.to(device)
    with torch.no_grad():
        first = convolve(x, weight, None, PROBLEM, "forward", config)
        assert torch.equal(convolve(x, weight, None, PROBLEM, "forward", config), first)
        weight.mul_(2)
        torch.testing.assert_close(convolve(x, weight, None, PROBLEM, "forward", config), 2 * first)
        turned = convolve(x, weight, None, PROBLEM, "grad_input", config)
        plain = ReferenceBackend().grad_input(case.x, weight.cpu(), PROBLEM)
        torch.testing.assert_close(turned.cpu(), plain, rtol=1e-5, atol=1e-5)
