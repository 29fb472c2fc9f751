"""Random inputs of the three maps of a problem, and a map run on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from widefield.ops.backends import Backend, Pass
from widefield.ops.depthwise_conv.problem import Problem, memory_format


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Input, weight and output gradient of a problem."""

    x: Tensor
    """(N, C, H, W) in the problem's memory format."""
    weight: Tensor
    """(C, 1, K_h, K_w), of the size that makes outputs about as large as inputs."""
    grad: Tensor
    """(N, C, P, Q) in the problem's memory format."""

    def run(self, backend: Backend, pass_: Pass, problem: Problem) -> Tensor:
        """Compute one map on a backend, as it comes."""
        if pass_ == "forward":
            return backend.forward(self.x, self.weight, None, problem)
        if pass_ == "grad_input":
            return backend.grad_input(self.grad, self.weight, problem)
        return backend.grad_weight(self.grad, self.x, problem)

    def part(self, images: slice, channels: list[int]) -> Operands:
        """Return a copy of some images and channels."""
        return Operands(x=self.x[images, channels], weight=self.weight[channels], grad=self.grad[images, channels])

    def first_image(self) -> Operands:
        """Return the first image alone, a view."""
        return Operands(x=self.x[:1], weight=self.weight, grad=self.grad[:1])

    def double(self) -> Operands:
        """Return the same values in float64."""
        return Operands(x=self.x.double(), weight=self.weight.double(), grad=self.grad.double())

    @property
    def size_bytes(self) -> int:
        """Bytes of all three together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.x, self.weight, self.grad))


def make_operands(problem: Problem, seed: int = 0) -> Operands:
    """Draw inputs on the problem's device from a normal distribution.

    Args:
        problem: Their shapes, dtype and layout.
        seed: Of the draw.
    """
    device = problem.device_type
    generator = torch.Generator(device).manual_seed(seed)
    form = memory_format(problem.layout)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(problem.dtype)

    height, width = problem.kernel_size
    images = (problem.batch, problem.channels)
    return Operands(
        x=draw(*images, problem.height, problem.width).contiguous(memory_format=form),
        weight=draw(problem.channels, 1, height, width) / (height * width) ** 0.5,
        grad=draw(*images, *problem.output_size).contiguous(memory_format=form),
    )


def finished(y: Tensor, problem: Problem, pass_: Pass) -> Tensor:
    """Return a backend's result as the registered operators hand it out: in the problem's dtype and memory format."""
    form = torch.contiguous_format if pass_ == "grad_weight" else memory_format(problem.layout)
    return y.to(problem.dtype).contiguous(memory_format=form)
