"""The Triton backend: what it refuses, and which kernel runs which map."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton import configs, hankel, roll
from widefield.ops.depthwise_conv.triton.geometry import as_forward, band, span
from widefield.ops.depthwise_conv.triton.launch import TYPE_NAMES, is_interpreted
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

if TYPE_CHECKING:
    from widefield.ops.depthwise_conv.triton.epilogue import Activation

LEAST_CAPABILITY = (8, 0)
"""Ampere: the first with tensor cores for bfloat16 and tf32, and asynchronous copies."""
INTERPRETED_CAPABILITY = (9, 0)
"""What the interpreter stands for."""
MOST_SPAN = 1024
"""Longest reach of a kernel along one axis, after dilation."""


class TritonBackend:
    """Depthwise convolution as products with Toeplitz matrices on tensor cores, one channel at a time.

    The matrices hold zeros where there is no tap, so a pixel that is not finite reaches outputs of its image and
    channel beyond the kernel's window too.
    """

    name = "triton"
    summary = "Toeplitz products on tensor cores (NVIDIA GPUs of compute capability 8.0 on)"

    def refusals(self, problem: Problem, pass_: Pass) -> list[str]:
        """Name what is missing of package, device, dtype and geometry."""
        rules = [
            (problem.dtype in TYPE_NAMES, f"it has no kernels for {str(problem.dtype).removeprefix('torch.')}"),
            (problem.stride == (1, 1), "it needs stride 1"),
            (max(span(problem, 0), span(problem, 1)) <= MOST_SPAN, f"the kernel spans more than {MOST_SPAN} pixels"),
        ]
        reasons = _missing(problem.device_type) + [reason for holds, reason in rules if not holds]
        if pass_ == "grad_weight" and not reasons:
            reasons += hankel.refusals(problem)
        return reasons

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, problem: Problem) -> Tensor:
        """Multiply with the kernel's Toeplitz matrices."""
        return convolve(x, weight, bias, problem, "forward")

    def grad_input(self, grad: Tensor, weight: Tensor, problem: Problem) -> Tensor:
        """Multiply with those of the kernel turned by 180 degrees."""
        return convolve(grad, weight, None, problem, "grad_input")

    def grad_weight(self, grad: Tensor, x: Tensor, problem: Problem) -> Tensor:
        """Multiply the Hankel matrix of the input with the Toeplitz matrix of the gradient."""
        return hankel.grad_weight(grad, x, problem, tiles_for(problem, "grad_weight", capability(x)))


def tiles_for(problem: Problem, pass_: Pass, capability: tuple[int, int]) -> TileConfig:
    """Return the tiles to run with: timed here if ``WIDEFIELD_AUTOTUNE=1`` asks for it, else `configs.choose_tiles`."""
    if os.environ.get("WIDEFIELD_AUTOTUNE") == "1":
        # It times this very module, and is not needed otherwise.
        from widefield.ops.depthwise_conv.triton import autotune

        timed = autotune.choose(problem, pass_, capability)
        if timed is not None:
            return timed
    return configs.choose_tiles(problem, pass_, capability)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    problem: Problem,
    pass_: Pass,
    config: TileConfig | None = None,
    *,
    activation: Activation | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Run one kernel for ``forward`` or ``grad_input``.

    Args:
        x: The image that the map reads: the input (N, C, H, W), or the output's gradient (N, C, P, Q); any strides.
        weight: (C, 1, K_h, K_w), any strides.
        bias: (C,) or none.
        problem: The shape, one without refusals.
        pass_: The map.
        config: Tiles; those of `tiles_for` if none.
        activation: What is applied last: "relu", "gelu" (exact) or "silu".
        residual: Of the result's shape, added before the activation.
        out: Where to write: contiguous, or channels_last for the kernel of that name; else a new tensor.

    Returns:
        ``activation(map + bias + residual)``.
    """
    config = config or tiles_for(problem, pass_, capability(x))
    if config.kernel == "roll":
        if activation is None and residual is None:
            return roll.launch(x, weight, bias, problem, pass_, config, out=out)
        config = configs.default(problem, pass_, capability(x))
    form = as_forward(problem, pass_)
    return _launch(x, weight, bias, form, config, pass_ != "forward", activation, residual, out)


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: Problem,
    config: TileConfig,
    is_flipped: bool,
    activation: Activation | None,
    residual: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    # Triton is imported here, when it is needed.
    from widefield.ops.depthwise_conv.triton import channels_last, columns, planes, rows
    from widefield.ops.depthwise_conv.triton.expand import expand

    is_channels_last = config.kernel == "channels_last"
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    x = x.contiguous(memory_format=layout)
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    if config.kernel == "planes":
        return planes.launch(
            x,
            weight,
            bias,
            form,
            config,
            is_flipped=is_flipped,
            activation=activation,
            residual=residual,
            out=out,
        )
    if config.is_padded:
        x = F.pad(x, (0, -x.shape[3] % 8))
    axis = 0 if config.kernel == "columns" else 1
    shape = band(form, axis, config.block_n, config.block_k)
    copies = expand(weight, form, axis, shape, is_flipped=is_flipped)
    launch = {"rows": rows, "columns": columns, "channels_last": channels_last}[config.kernel].launch
    return launch(x, copies, bias, form, config, activation=activation, residual=residual, out=out)


def capability(x: Tensor) -> tuple[int, int]:
    """Return the compute capability of the GPU on which `x` lies, or that which the interpreter stands for."""
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else INTERPRETED_CAPABILITY


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _missing(device_type: str) -> list[str]:
    if not _has_triton():
        return ["the package triton is not installed"]
    if device_type == "cpu" and is_interpreted():
        return []
    if device_type != "cuda":
        return [f"it is for CUDA tensors, not {device_type}"]
    if torch.version.hip is not None:
        return ["it is for NVIDIA GPUs"]
    if not torch.cuda.is_available():
        return ["there is no CUDA device"]
    found = torch.cuda.get_device_capability()
    if found < LEAST_CAPABILITY:
        return [f"it needs compute capability 8.0, this GPU has {found[0]}.{found[1]}"]
    return []
