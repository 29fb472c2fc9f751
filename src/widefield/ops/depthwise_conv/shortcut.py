"""Problems of which PyTorch's own convolution runs every map best: it is then called without a detour.

On a tiny problem the choice itself would cost more than the convolution, so what was once checked and chosen is
remembered under everything that the checks and the choice depend on.
"""

# Whether any autocast is on can be asked by one private name, or by one question for each device.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv import defects, maps
from widefield.ops.depthwise_conv.order import machine
from widefield.ops.functions import is_transformed

Pair = tuple[int, int]
Spacing = tuple[Pair, Pair, Pair]
"""Stride, padding, dilation."""

MOST_PLANS = 4096


class Plan(NamedTuple):
    """How a problem runs that has been checked."""

    spacing: Spacing
    is_direct: bool
    """Whether ``F.conv2d`` is the best for every map, with no tap to cut."""


_plans: dict[Hashable, Plan] = {}


def key_of(x: Tensor, weight: Tensor, bias: Tensor | None, spacing: Hashable, forced: str) -> Hashable | None:
    """Return all that the checks and the choice for these tensors depend on, or None if they are to be made anew."""
    if torch.compiler.is_compiling() or (type(x) is not Tensor and type(x) is not nn.Parameter):
        return None
    if torch._C._is_any_autocast_enabled() or torch._C._len_torch_dispatch_stack() > 0 or is_transformed():
        return None
    try:
        rest = None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout)
        # The strides of an ordinary image tell its memory format; they cost less to read.
        image = (x.shape, x.stride(), x.dtype, x.device, x.layout)
        kernel = (weight.shape, weight.dtype, weight.device, weight.layout)
    except RuntimeError:  # sparse and nested tensors have no strides or shapes
        return None
    return (image, kernel, rest, spacing, forced, torch.get_num_threads())


def find(key: Hashable | None) -> Plan | None:
    """Return the plan made under a key, if there is one."""
    try:
        return _plans.get(key)
    except TypeError:  # lists as stride, padding or dilation
        return None


def make(key: Hashable | None, x: Tensor, weight: Tensor, spacing: Spacing, forced: str) -> Plan:
    """Return the plan for checked tensors, and keep it under a key."""
    if key is None or x.is_meta or x.numel() == 0:
        return Plan(spacing, False)
    plan = Plan(spacing, _is_direct(x, weight, spacing, forced))
    if len(_plans) >= MOST_PLANS:
        _plans.clear()
    with suppress(TypeError):
        _plans[key] = plan
    return plan


def _is_direct(x: Tensor, weight: Tensor, spacing: Spacing, forced: str) -> bool:
    passes: tuple[Pass, ...] = ("forward", "grad_input", "grad_weight")
    problem = maps.problem_of(x, x.shape, weight.shape[2:], *spacing)
    if forced not in ("", "aten"):
        return False
    if any(defects.is_any(problem, pass_) for pass_ in passes):
        return False
    choices = [maps.chosen(problem, pass_, forced, machine()) for pass_ in passes]
    return all(backend.name == "aten" and margins == (0, 0) for _, margins, backend in choices)
