"""The order in which backends are tried, by map and shape: rules fitted to measurements, most specific first."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.ops.backends import PASSES, Backend, Pass
from widefield.ops.depthwise_conv.aten import AtenBackend
from widefield.ops.depthwise_conv.channels_last import ChannelsLastBackend
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.correlation import CorrelationBackend, nchw_kernel_width_limit
from widefield.ops.depthwise_conv.problem import Layout, Problem
from widefield.ops.depthwise_conv.reference import ReferenceBackend
from widefield.ops.dispatch import Explanation, explain_choice, forced_backend

BACKENDS: tuple[Backend, ...] = (AtenBackend(), ChannelsLastBackend(), CorrelationBackend(), ReferenceBackend())


def order(problem: Problem, pass_: Pass) -> tuple[str, ...]:
    """Return the names of the backends that may run one map, best first.

    The rules are what ``benchmarks/results/cpu_depthwise_layouts.json`` shows for oneDNN: in NCHW the forward kernels
    are fast up to a certain kernel width and 10 to 20 times slower beyond it, where channels_last is not; the input's
    gradient is fast in NCHW at any width in float32; the weight's gradient is slow in every layout beyond 3 x 3, and
    fast as a correlation. Float64 has no channels_last kernels.
    """
    torch_orders = ("aten", "channels_last")
    if problem.device_type != "cpu":
        return torch_orders
    if pass_ == "grad_weight":
        is_small = max(problem.kernel_size) <= 3
        return torch_orders if is_small or problem.dtype == torch.float64 else ("correlation", *torch_orders)
    is_wide = problem.kernel_size[1] > nchw_kernel_width_limit()
    is_half = problem.dtype in (torch.bfloat16, torch.float16)
    is_as_it_lies = problem.layout == "channels_last" and not is_half
    if problem.dtype == torch.float64 or is_as_it_lies or not is_wide or problem.stride != (1, 1):
        return torch_orders
    if pass_ == "grad_input" and not is_half:
        return torch_orders
    return torch_orders[::-1]


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
    orders: dict[Pass, Sequence[str]] = {pass_: order(runs_as, pass_) for pass_ in PASSES}
    return explain_choice(BACKENDS, orders, problem, runs_as, forced_backend())


def _device_type(device: str) -> str:
    try:
        return torch.device(device).type
    except RuntimeError as error:
        raise InputError("a device type of PyTorch", repr(device), 'use "cpu" or "cuda"') from error
