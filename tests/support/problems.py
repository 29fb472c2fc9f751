"""Depthwise convolution problems drawn by Hypothesis, with the tensors that belong to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from widefield.ops.depthwise_conv import registration
from widefield.ops.depthwise_conv.problem import Problem, memory_format

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MAPS = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A problem and tensors for all three maps."""

    problem: Problem
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    grad: Tensor

    def run(self, map_: str, backend: str) -> Tensor:
        geometry = (self.problem.stride, self.problem.padding, self.problem.dilation, backend)
        if map_ == "forward":
            return registration.forward(self.x, self.weight, self.bias, *geometry)
        if map_ == "grad_input":
            return registration.grad_input(self.grad, self.weight, self.x.shape, *geometry)
        return registration.grad_weight(self.grad, self.x, self.weight.shape[2:], *geometry)

    def oracle(self, map_: str) -> Tensor:
        return self.double().run(map_, "reference")

    def magnitude(self, map_: str) -> float:
        """Largest sum of the absolute values of the terms of one output: the scale of its rounding error.

        At least one term of the largest operands, which a Fourier transform spreads to outputs that no tap reaches.
        """
        wide = self.double()
        bias = None if wide.bias is None else wide.bias.abs()
        case = Case(problem=wide.problem, x=wide.x.abs(), weight=wide.weight.abs(), bias=bias, grad=wide.grad.abs())
        out = case.run(map_, "reference")
        one, other = case.operands(map_)
        return max(largest(out), largest(one) * largest(other))

    def energy(self, map_: str) -> float:
        """Largest product of two planes' Euclidean norms: the scale of a Fourier transform's rounding error."""
        one, other = (largest(x.double().flatten(-2).norm(dim=-1)) for x in self.operands(map_))
        return one * other * (max(self.problem.batch, 1) if map_ == "grad_weight" else 1)

    def operands(self, map_: str) -> tuple[Tensor, Tensor]:
        """What a map multiplies."""
        if map_ == "forward":
            return self.x, self.weight
        return self.grad, (self.weight if map_ == "grad_input" else self.x)

    def double(self) -> Case:
        bias = None if self.bias is None else self.bias.double()
        return Case(
            problem=self.problem, x=self.x.double(), weight=self.weight.double(), bias=bias, grad=self.grad.double()
        )


def largest(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def make_case(problem: Problem, *, with_bias: bool = True, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    form = memory_format(problem.layout)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(problem.dtype)

    size = (problem.batch, problem.channels)
    return Case(
        problem=problem,
        x=draw(*size, problem.height, problem.width).contiguous(memory_format=form),
        weight=draw(problem.channels, 1, *problem.kernel_size),
        bias=draw(problem.channels) if with_bias else None,
        grad=draw(*size, *problem.output_size).contiguous(memory_format=form),
    )


@st.composite
def cases(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = DTYPES, *, plain: bool = False, most_macs: int = 300_000
) -> Case:
    """Any problem of at most `most_macs` multiplications; with `plain` only stride 1, dilation 1, "same" padding."""
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    # Up to beyond twice the map, where some taps never meet a pixel.
    most = [n + 2 for n in (height, width)]
    tall = 2 * draw(st.integers(0, most[0])) + 1
    room = max(1, most_macs // (height * width * tall))
    kernel = (tall, 2 * draw(st.integers(0, min(most[1], (room - 1) // 2))) + 1)
    planes = max(1, most_macs // (height * width * kernel[0] * kernel[1]))
    batch = draw(st.integers(0, min(3, planes)))
    channels = draw(st.integers(1, min(9, max(1, planes // max(batch, 1)))))
    stride = (1, 1) if plain else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    dilation = (1, 1) if plain else (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = [span // 2 for span in spans]
    if not plain and draw(st.booleans()):
        least = [max(0, -(-(span + 1 - n) // 2)) for span, n in zip(spans, (height, width), strict=True)]
        padding = [n + draw(st.integers(0, 3)) for n in least]
    problem = Problem(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        kernel_size=(kernel[0], kernel[1]),
        stride=stride,
        padding=(padding[0], padding[1]),
        dilation=dilation,
        dtype=draw(st.sampled_from(dtypes)),
        layout=draw(st.sampled_from(("contiguous", "channels_last"))),
    )
    return make_case(problem, with_bias=draw(st.booleans()), seed=draw(st.integers(0, 99)))
