from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.problems import Case, make_case
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.reference import ReferenceBackend
from widefield.ops.depthwise_conv.triton import TritonBackend, configs
from widefield.ops.depthwise_conv.triton.backend import convolve
from widefield.ops.depthwise_conv.triton.geometry import as_forward
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
UNITS = {torch.float32: 16, torch.float16: 1, torch.bfloat16: 1}
"""Error allowed, in units of the type's last place at the sum of the absolute values of the terms."""


@st.composite
def problems(draw: st.DrawFn, *, tall: bool = False, most: tuple[int, int] = (8, 36), channels: int = 2) -> Problem:
    height, width = draw(st.integers(1, most[0])), draw(st.integers(1, most[1]))
    kernel = (draw(st.integers(3, 9)), draw(st.integers(1, 2))) if tall else (draw(st.integers(1, 6)), 0)
    kernel = (kernel[0], kernel[1] or draw(st.integers(1, 21)))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3)]))
    spans = [gap * (k - 1) for gap, k in zip(dilation, kernel, strict=True)]
    least = [max(0, -(-(span + 1 - n) // 2)) for span, n in zip(spans, (height, width), strict=True)]
    padding = [n + draw(st.integers(0, 9)) for n in least]
    if draw(st.booleans()):
        padding = [max(n, span // 2) for n, span in zip(least, spans, strict=True)]
    problem = Problem(
        batch=draw(st.integers(1, 3)),
        channels=draw(st.sampled_from(sorted({1, channels}))),
        height=height,
        width=width,
        kernel_size=kernel,
        padding=(padding[0], padding[1]),
        dilation=dilation,
        dtype=draw(st.sampled_from(sorted(UNITS, key=str))),
        layout=draw(st.sampled_from(("contiguous", "channels_last"))),
    )
    return clip(problem)[0]


def tiles(kernel: str, problem: Problem, pass_: Pass) -> st.SearchStrategy[TileConfig]:
    """The candidates, made lower where that saves time in the interpreter and changes nothing in the columns."""
    if kernel == "planes":
        planes = TileConfig(kernel="planes", block_m=16, block_n=32, block_k=32)
        return st.sampled_from([planes, replace(planes, block_n=64, channels=2), replace(planes, block_k=64)])
    found = [config for config in configs.candidates(problem, pass_, (9, 0)) if config.kernel == kernel]
    smaller = [replace(config, block_m=min(config.block_m, 32), num_warps=4) for config in found]
    return st.sampled_from(list(dict.fromkeys(smaller)))


def poisoned(problem: Problem, pass_: Pass, config: TileConfig, device: str) -> Tensor:
    form = as_forward(problem, pass_)
    size = (form.batch, form.channels, *form.output_size)
    out = torch.full(size, torch.nan, dtype=problem.dtype, device=device)
    return out.contiguous(memory_format=torch.channels_last) if config.kernel == "channels_last" else out


def definition(case: Case, pass_: Pass, *, is_absolute: bool = False) -> Tensor:
    wide = case.double()
    x, weight, grad, bias = wide.x, wide.weight, wide.grad, wide.bias
    if is_absolute:
        x, weight, grad, bias = x.abs(), weight.abs(), grad.abs(), None if bias is None else bias.abs()
    if pass_ == "forward":
        return ReferenceBackend().forward(x, weight, bias, case.problem)
    return ReferenceBackend().grad_input(grad, weight, case.problem)


def compare(actual: Tensor, case: Case, pass_: Pass) -> None:
    """Every output for itself: at the border, where few taps meet the image, the error must be small too."""
    expected, scale = definition(case, pass_), definition(case, pass_, is_absolute=True)
    assert actual.shape == expected.shape
    assert actual.dtype == case.problem.dtype
    error = (actual.cpu().double() - expected).abs()
    unit = torch.finfo(case.problem.dtype).eps
    # The smallest float16 numbers have fewer digits.
    floor = torch.finfo(case.problem.dtype).smallest_normal * unit
    assert bool((error <= UNITS[case.problem.dtype] * unit * scale + floor).all())


def run(case: Case, pass_: Pass, config: TileConfig, device: str) -> Tensor:
    image = case.x if pass_ == "forward" else case.grad
    bias = None if case.bias is None or pass_ != "forward" else case.bias.to(device)
    out = poisoned(case.problem, pass_, config, device)
    return convolve(image.to(device), case.weight.to(device), bias, case.problem, pass_, config, out=out)


def check(data: st.DataObject, problem: Problem, kernel: str, pass_: Pass, device: str) -> None:
    case = make_case(problem, with_bias=data.draw(st.booleans()), seed=data.draw(st.integers(0, 99)))
    compare(run(case, pass_, data.draw(tiles(kernel, problem, pass_)), device), case, pass_)


KERNELS = {
    "rows": problems(),
    "columns": problems(tall=True, most=(36, 8)).filter(
        lambda problem: problem.kernel_size[0] > problem.kernel_size[1]
    ),
    "planes": problems(most=(9, 9)),
    "channels_last": problems(most=(8, 24), channels=24).map(
        lambda problem: replace(problem, layout="channels_last", channels=8 if problem.channels == 1 else 24)
    ),
}
"""Every kernel and the problems that it is drawn for; with a fourth of the examples each, they are the backend's."""


@pytest.mark.parametrize("pass_", ["forward", "grad_input"])
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=15, **SETTINGS)
@given(data=st.data())
def test_every_kernel_computes_both_maps(data: st.DataObject, kernel: str, pass_: Pass, device: str) -> None:
    check(data, data.draw(KERNELS[kernel]), kernel, pass_, device)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pass_", ["forward", "grad_input"])
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=125, **SETTINGS)
@given(data=st.data())
def test_every_kernel_computes_both_maps_of_many_problems(
    data: st.DataObject, kernel: str, pass_: Pass, device: str
) -> None:
    check(data, data.draw(KERNELS[kernel]), kernel, pass_, device)


@pytest.mark.parametrize("kernel", KERNELS)
def test_two_runs_give_the_same_bits(kernel: str, device: str) -> None:
    size = {"height": 7, "width": 8, "kernel_size": (5, 3), "padding": (2, 1)}
    problem = Problem(batch=1, channels=8, layout="channels_last", **size)  # type: ignore[arg-type]
    case = make_case(problem)
    config = replace(next(c for c in configs.candidates(problem, "forward", (9, 0)) if c.kernel == kernel), block_m=16)
    first, second = (run(case, "forward", config, device) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_backend_computes_all_three_maps_with_the_tiles_it_chooses(layout: str, device: str) -> None:
    problem = Problem(
        batch=1,
        channels=2,
        height=7,
        width=9,
        kernel_size=(3, 5),
        padding=(1, 2),
        device_type=device,
        layout="channels_last" if layout == "channels_last" else "contiguous",
    )
    case, backend = make_case(problem), TritonBackend()
    assert case.bias is not None
    x, weight, grad, bias = (tensor.to(device) for tensor in (case.x, case.weight, case.grad, case.bias))
    compare(backend.forward(x, weight, bias, problem), case, "forward")
    compare(backend.grad_input(grad, weight, problem), case, "grad_input")
    dw = backend.grad_weight(grad, x, problem)
    error = (dw.cpu().double() - case.oracle("grad_weight")).abs().max().item()
    assert error <= 16 * torch.finfo(torch.float32).eps * case.magnitude("grad_weight")
