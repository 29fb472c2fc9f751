"""The order in which backends are tried, by map and shape: predicted times on a CPU, the kernel's size on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.ops.backends import PASSES, Backend, Pass
from widefield.ops.depthwise_conv.aten import AtenBackend
from widefield.ops.depthwise_conv.channels_last import ChannelsLastBackend
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.correlation import CorrelationBackend
from widefield.ops.depthwise_conv.fft import FftBackend, LibraryTransform, MatrixTransform
from widefield.ops.depthwise_conv.problem import Layout, Problem
from widefield.ops.depthwise_conv.reference import ReferenceBackend
from widefield.ops.depthwise_conv.transposed import TransposedBackend
from widefield.ops.depthwise_conv.triton import TritonBackend
from widefield.ops.dispatch import Explanation, explain_choice, forced_backend
from widefield.ops.tuning import costs

BACKENDS: tuple[Backend, ...] = (
    AtenBackend(),
    ChannelsLastBackend(),
    TransposedBackend(),
    CorrelationBackend(),
    FftBackend("fft", "torch.fft on a few planes at a time, float32 inside (CPU)", LibraryTransform),
    FftBackend("dft", "Fourier transforms as matrix products, float32 inside (CPU)", MatrixTransform),
    TritonBackend(),
    ReferenceBackend(),
)


TORCH = ("aten", "channels_last")
CPU_BACKENDS = (*TORCH, "transposed", "correlation", "fft", "dft")

HANDICAPS = {"aten": 1.0, "channels_last": 1.0, "transposed": 1.2, "correlation": 1.2, "fft": 1.1, "dft": 1.1}
"""How much faster than PyTorch's own way each backend must be predicted to be before it is preferred.

The detours through PyTorch's other kernels are predicted less well, and gain less, than the Fourier transforms.
"""

MOST_TINY_MACS = 1 << 19
"""Multiplications up to which a convolution takes no longer than choosing another way to do it."""

LEAST_KERNEL_FOR_TRITON = 7


@dataclass(frozen=True, slots=True)
class Machine:
    """What of the machine and its settings bears on the choice."""

    capability: str
    threads: int
    matmul_precision: str


def machine() -> Machine:
    """Return this machine as it is set now."""
    return Machine(
        torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    )


def order(problem: Problem, pass_: Pass, here: Machine) -> tuple[str, ...]:
    """Return the names of the backends that may run one map, best first.

    On a CPU by predicted time (`costs`); where no prediction is known, and between near equals, PyTorch's own come
    first. On a GPU the Triton kernels come first from 7 x 7 on.

    Args:
        problem: Clipped to the taps that meet a pixel.
        pass_: The map.
        here: The machine.
    """
    if problem.device_type != "cpu":
        is_large = max(problem.kernel_size) >= LEAST_KERNEL_FOR_TRITON
        return ("triton", *TORCH) if is_large else (*TORCH, "triton")
    times = predictions(problem, pass_, here)
    if math.isinf(times["aten"]) or problem.macs <= MOST_TINY_MACS:
        # Nothing is known to beat PyTorch's own here, or nothing could make up for the detour.
        return (*TORCH, *(name for name in times if name not in TORCH))
    return tuple(sorted(times, key=lambda name: times[name] * HANDICAPS[name]))


def predictions(problem: Problem, pass_: Pass, here: Machine) -> dict[str, float]:
    """Return the predicted milliseconds of each CPU backend that may be chosen, infinite where none is known."""
    table = costs(here.capability)
    return {name: table.predict(name, pass_, problem, here.threads) for name in CPU_BACKENDS}


def explain(
    batch: int,
    channels: int,
    height: int,
    width: int,
    kernel_size: int | tuple[int, int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    layout: Layout = "contiguous",
) -> Explanation:
    """Say which backend runs each map of a "same" depthwise convolution, and why the others do not.

    Args:
        batch: N, number of images.
        channels: C.
        height: H, rows of the map.
        width: W, columns of the map.
        kernel_size: K, or (K_h, K_w); odd.
        dtype: Of input and weight.
        device: Device type ("cpu", "cuda").
        layout: Memory format of the input, "contiguous" or "channels_last".

    Returns:
        Every candidate for every map, best first; ``print`` it for a table. A kernel beyond (2 H - 1) x (2 W - 1) runs
        cut to that, since the other taps never meet a pixel.

    Raises:
        InputError: If a size is not positive, the kernel is even, or there is no such device type.
    """
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    sizes = (batch, channels, height, width, *kernel)
    check(min(sizes) > 0, "positive sizes", f"{sizes}", "give N, C, H, W and K as whole numbers above 0")
    check(
        all(k % 2 == 1 for k in kernel),
        'an odd kernel size for "same" padding',
        f"{kernel[0]}x{kernel[1]}",
        f"use {kernel[0] | 1}x{kernel[1] | 1}",
    )
    problem = Problem(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        kernel_size=kernel,
        padding=(kernel[0] // 2, kernel[1] // 2),
        dtype=dtype,
        device_type=_device_type(device),
        layout=layout,
    )
    runs_as, _ = clip(problem)
    here = machine()
    orders: dict[Pass, Sequence[str]] = {pass_: order(runs_as, pass_, here) for pass_ in PASSES}
    predicted: dict[Pass, dict[str, float]] = {
        pass_: predictions(runs_as, pass_, here) if runs_as.device_type == "cpu" else {} for pass_ in PASSES
    }
    return explain_choice(BACKENDS, orders, problem, runs_as, forced_backend(), predicted)


def _device_type(device: str) -> str:
    try:
        return torch.device(device).type
    except RuntimeError as error:
        raise InputError("a device type of PyTorch", repr(device), 'use "cpu" or "cuda"') from error
