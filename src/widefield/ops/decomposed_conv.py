"""SLaK's decomposed convolution: a tall stripe, a wide stripe and a small square, added up on one plane."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield._core.checks import check, check_name
from widefield.ops.backends import PASSES, Pass
from widefield.ops.depthwise_conv.api import depthwise_conv2d
from widefield.ops.depthwise_conv.autograd import is_seen
from widefield.ops.depthwise_conv.clip import clip
from widefield.ops.depthwise_conv.order import Machine, machine, predictions
from widefield.ops.depthwise_conv.problem import Problem, layout_of
from widefield.ops.dispatch import forced_backend
from widefield.ops.operands import check_dense, check_floating, not_scriptable
from widefield.ops.weight_cache import derived, fingerprint

Form = Literal["auto", "stripes", "cross"]
FORMS = ("auto", "stripes", "cross")


@not_scriptable
def decomposed_conv2d(
    x: Tensor,
    tall: Tensor,
    wide: Tensor,
    small: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    form: Form = "auto",
) -> Tensor:
    """Add up the convolutions with the two stripes and the small kernel of a decomposed large kernel.

    The branches can be computed one by one ("stripes"), or at once as one cross-shaped M x M kernel ("cross"), which
    wins where the cost of a convolution does not grow with its kernel, as in the frequency domain.

    Args:
        x: Images (N, C, H, W).
        tall: Kernels (C, 1, M, n), n at most M.
        wide: Kernels (C, 1, n, M).
        small: Optional kernels (C, 1, n', n'), n' at most M.
        bias: Optional (C,).
        form: "stripes", "cross", or "auto" for the one predicted to be faster on a CPU; on a GPU the stripes, whose
            kernels skip the cross's empty corners, and likewise in a compiled graph.

    Returns:
        (N, C, H, W), "same" padding. Gradients of any order flow to every operand.

    Raises:
        InputError: If the form is unknown, a stripe is longer the other way, or as `depthwise_conv2d`.

    Source: SLaK (Liu et al., 2023), section 4: "51x5 and 5x51", and the 5x5 beside them.
    """
    check_name(form, FORMS, "form of a decomposed convolution")
    check_dense(x, tall, wide, small, bias)
    check_floating(x)
    _check_stripes(tall, wide, small)
    branches = [tall, wide] if small is None else [tall, wide, small]
    if form == "auto":
        form = "cross" if _is_cross_faster(x, branches) else "stripes"
    if form == "cross":
        return depthwise_conv2d(x, _known_cross(tall, wide, small), bias)
    y = depthwise_conv2d(x, tall, bias)
    for kernel in branches[1:]:
        y = y + depthwise_conv2d(x, kernel)
    return y


@not_scriptable
def cross_kernel(tall: Tensor, wide: Tensor, small: Tensor | None = None) -> Tensor:
    """Return the cross-shaped kernel (C, 1, M, M) that equals the branches together.

    Args:
        tall: (C, 1, M, n).
        wide: (C, 1, n, M).
        small: Optional (C, 1, n', n').

    Raises:
        InputError: If a stripe is longer the other way.
    """
    _check_stripes(tall, wide, small)
    size = tall.shape[2], wide.shape[3]
    kernels = (tall, wide) if small is None else (tall, wide, small)
    total, *others = (_embedded(kernel, size) for kernel in kernels)
    for other in others:
        total = total + other
    return total


def _known_cross(tall: Tensor, wide: Tensor, small: Tensor | None) -> Tensor:
    """Return the cross-shaped kernel, in inference the same tensor again, so that its spectra are kept too."""
    branches = [tall, wide] if small is None else [tall, wide, small]
    is_training = torch.is_grad_enabled() and any(kernel.requires_grad for kernel in branches)
    if is_training or is_seen(tall) or tall.device.type != "cpu":
        return cross_kernel(tall, wide, small)
    key = ("cross", *(fingerprint(kernel) for kernel in branches[1:]))
    return derived(tall, key, lambda: cross_kernel(tall, wide, small))


def _embedded(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = ((n - k) // 2 for n, k in zip(size, kernel.shape[2:], strict=True))
    return F.pad(kernel, (columns, columns, rows, rows))


def _check_stripes(tall: Tensor, wide: Tensor, small: Tensor | None) -> None:
    check_dense(tall, wide, small)
    kernels = [tall, wide] if small is None else [tall, wide, small]
    sizes = ", ".join("x".join(str(n) for n in kernel.shape[2:]) for kernel in kernels)
    is_fitting = all(kernel.dim() == 4 for kernel in kernels) and all(
        kernel.shape[2] <= tall.shape[2] and kernel.shape[3] <= wide.shape[3] and kernel.shape[2] % 2 == 1
        for kernel in kernels
    )
    check(
        is_fitting and all(kernel.shape[3] % 2 == 1 for kernel in kernels),
        "a tall kernel (C, 1, M, n), a wide one (C, 1, n, M) and a small one, all of odd sizes up to M",
        sizes,
        "swap the stripes, or use odd sizes",
    )


def _is_cross_faster(x: Tensor, kernels: list[Tensor]) -> bool:
    # A compiled graph holds one form for whatever sizes come, and keeps no kernel.
    # Nor does a tensor that is spread over processes say how its part lies.
    is_ordinary = type(x) in (Tensor, torch.nn.Parameter)
    if x.dim() != 4 or x.device.type != "cpu" or torch.compiler.is_compiling() or not is_ordinary:
        return False
    size = max(k.shape[2] for k in kernels), max(k.shape[3] for k in kernels)
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *kernels))
    passes: tuple[Pass, ...] = PASSES if wants_gradient else ("forward",)
    stripes = sum(_predicted(x, (int(k.shape[2]), int(k.shape[3])), passes) for k in kernels)
    return _predicted(x, (int(size[0]), int(size[1])), passes) < stripes


def _predicted(x: Tensor, kernel: tuple[int, int], passes: tuple[Pass, ...]) -> float:
    batch, channels, height, width = (max(int(n), 1) for n in x.shape)
    problem = Problem(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        kernel_size=kernel,
        padding=(kernel[0] // 2, kernel[1] // 2),
        dtype=x.dtype,
        layout=layout_of(x),
    )
    return sum(_predicted_ms(problem, pass_, forced_backend(), machine()) for pass_ in passes)


@lru_cache(maxsize=4096)
def _predicted_ms(problem: Problem, pass_: Pass, forced: str, here: Machine) -> float:
    times = predictions(clip(problem)[0], pass_, here)
    return times.get(forced, min(times.values()))
