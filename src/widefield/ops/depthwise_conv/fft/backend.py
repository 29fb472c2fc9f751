"""The Fourier transforms as backends of the dense convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.fft.maps import FourierMaps, Kind
from widefield.ops.depthwise_conv.fft.maps import Transform as Transform
from widefield.ops.depthwise_conv.fft.matrices import MatrixTransform
from widefield.ops.depthwise_conv.problem import Problem


class FftBackend:
    """Chunked real Fourier transforms of either kind; any stride, padding and dilation."""

    def __init__(self, name: str, summary: str, kind: Kind) -> None:
        self.name = name
        self.summary = summary
        self.kind: Kind = kind

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        """It runs on a CPU; matrix products must not be rounded to bfloat16 on the way."""
        reasons: list[str] = []
        if problem.device_type != "cpu":
            reasons.append(f"it is for CPU tensors, not {problem.device_type}")
        if self.kind is MatrixTransform and torch.get_float32_matmul_precision() == "medium":
            reasons.append('torch.set_float32_matmul_precision("medium") would round its products to bfloat16')
        return reasons

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """Multiply the spectra of image and kernel."""
        return FourierMaps(self.kind, problem).forward(x, weight, bias)

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        """Multiply the spectra of gradient and kernel."""
        return FourierMaps(self.kind, problem).grad_input(grad, weight)

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        """Sum the products of the spectra of image and gradient over the batch."""
        return FourierMaps(self.kind, problem).grad_kernel(grad, x)
