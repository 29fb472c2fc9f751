"""Problems of which PyTorch's own convolution runs every map best: it is then called without a detour.

On a tiny problem the choice itself would cost more than the convolution, so what was once checked and chosen is
remembered under everything that the checks and the choice depend on.
"""

# Whether any autocast is on can be asked by one private name, or by one question for each device.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Hashable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv import maps
from widefield.ops.depthwise_conv.order import machine

Pair = tuple[int, int]
Spacing = tuple[Pair, Pair, Pair]
"""Stride, padding, dilation."""

MOST_SHORTCUTS = 4096

_shortcuts: dict[Hashable, Spacing] = {}


def key_of(x: Tensor, weight: Tensor, bias: Tensor | None, spacing: Hashable, forced: str) -> Hashable | None:
    """Return what the choice for these tensors depends on, or None if they must take the long way."""
    if torch.compiler.is_compiling() or (type(x) is not Tensor and type(x) is not nn.Parameter):
        return None
    if torch._C._is_any_autocast_enabled():
        return None
    rest = None if bias is None else (bias.shape, bias.dtype)
    # The strides of an ordinary image tell its layout; they cost less to read than the layout.
    image = (x.shape, x.stride(), x.dtype, x.device)
    return (image, weight.shape, weight.dtype, rest, spacing, forced, torch.get_num_threads())


def run(key: Hashable | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return PyTorch's convolution of the tensors if that is known to be best for all maps, else None."""
    try:
        spacing = _shortcuts.get(key)
        return None if spacing is None else F.conv2d(x, weight, bias, *spacing, x.shape[1])
    except (TypeError, RuntimeError):
        # Lists as stride, padding or dilation; a weight on another device: the long way finds words for it.
        return None


def remember(key: Hashable, x: Tensor, weight: Tensor, spacing: Spacing, forced: str) -> None:
    """Keep the call if ``aten`` is chosen for every map that may run, with no tap cut off."""
    if x.is_meta or weight.device != x.device or x.numel() == 0:
        return
    passes: tuple[Pass, ...] = ("forward", "grad_input", "grad_weight")
    problem = maps.problem_of(x, x.shape, weight.shape[2:], *spacing)
    for pass_ in passes:
        _, margins, backend = maps.chosen(problem, pass_, forced, machine())
        if backend.name != "aten" or margins != (0, 0):
            return
    if len(_shortcuts) >= MOST_SHORTCUTS:
        _shortcuts.clear()
    try:
        _shortcuts[key] = spacing
    except TypeError:
        return
