"""The forward map as the input's gradient of another convolution, which oneDNN computes fast in NCHW at any width.

``F(x, w)[p] = sum over k of w[k] x[p + d k - pad]`` is ``G_x(x, w')`` with the taps in reverse order and padding
``d (K - 1) - pad``: the operator is its own transpose but for the order of the taps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.aten import AtenBackend
from widefield.ops.depthwise_conv.problem import Problem


class TransposedBackend:
    """``forward`` only, on a CPU, stride 1; float32 inside for half precision."""

    name = "transposed"
    summary = "forward as the input's gradient with the taps reversed (CPU)"

    def __init__(self) -> None:
        self._aten = AtenBackend()

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        """It has one map."""
        rules = (
            (pass_ == "forward", "it computes forward alone"),
            (problem.device_type == "cpu", f"it is for CPU tensors, not {problem.device_type}"),
            (problem.stride == (1, 1), "it needs stride 1"),
            (min(_mirrored_padding(problem)) >= 0, "it needs a padding of at most dilation (K - 1)"),
        )
        return [reason for holds, reason in rules if not holds]

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """Take the gradient of the mirrored problem, which maps (N, C, P, Q) to (N, C, H, W)."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        height, width = problem.output_size
        mirrored = replace(
            problem, height=height, width=width, padding=_mirrored_padding(problem), dtype=dtype, layout="contiguous"
        )
        y = self._aten.grad_input(x.to(dtype).contiguous(), weight.to(dtype).flip(2, 3), mirrored)
        return y if bias is None else y.add_(bias[:, None, None])

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        """Never called: `refusals` names the reason."""
        raise AssertionError("transposed has no grad_input")

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        """Never called: `refusals` names the reason."""
        raise AssertionError("transposed has no grad_weight")


def _mirrored_padding(problem: Problem) -> tuple[int, int]:
    spans = (gap * (k - 1) for gap, k in zip(problem.dilation, problem.kernel_size, strict=True))
    rows, columns = (span - pad for span, pad in zip(spans, problem.padding, strict=True))
    return rows, columns
