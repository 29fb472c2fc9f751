"""The public functions: argument checks, autocast, and the call of the registered operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch.nn.functional as F
from torch import Tensor

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.ops.depthwise_conv import shortcut
from widefield.ops.depthwise_conv.autograd import forward
from widefield.ops.depthwise_conv.epilogue import Activation, check_activation, finished, fused
from widefield.ops.dispatch import forced_backend
from widefield.ops.operands import autocast_dtype, check_dense, check_floating, not_scriptable

Padding = int | tuple[int, int] | Literal["same"]


@not_scriptable
def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = "same",
    dilation: int | tuple[int, int] = 1,
    residual: Tensor | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """Convolve every channel with its own kernel, on the fastest backend for the shape.

    Args:
        x: Images (N, C, H, W), any memory format (the output has the same).
        weight: Kernels (C, 1, K_h, K_w), as in ``nn.Conv2d(C, C, K, groups=C)``.
        bias: Optional (C,).
        stride: Step in pixels, one number or (vertical, horizontal).
        padding: Zeros on each side, or "same" for ``dilation * (K - 1) / 2``, which keeps H x W at stride 1.
        dilation: Distance between taps in pixels.
        residual: Optional (N, C, P, Q), added to the output.
        activation: "relu", "gelu" (exact) or "silu" of the sum, if any. In inference the Triton kernels compute
            residual and activation on the way.

    Returns:
        (N, C, P, Q) with P = (H + 2 padding - dilation (K_h - 1) - 1) // stride + 1, and Q alike.

    Raises:
        InputError: If ranks, channels, dtypes or devices do not fit, the dtype is not floating, a tensor is sparse or
            nested, the kernel is even and the padding "same", the padded image is smaller than the kernel, or there is
            no such activation.
    """
    forced = forced_backend()
    key = shortcut.key_of(x, weight, bias, (stride, padding, dilation), forced)
    plan = shortcut.find(key)
    if plan is None:
        check_dense(x, weight, bias)
        _check_shapes(x, weight, bias)
        x, weight, bias = _autocast(x, weight, bias)
        _check_types(x, weight, bias)
        plan = shortcut.make(key, x, weight, _spacing(x, weight, stride, padding, dilation), forced)
    is_plain = residual is None and activation is None
    if not is_plain:
        check_activation(activation)
        y = fused(x, weight, bias, plan.spacing, forced, residual, activation)
        if y is not None:
            return y
    if plan.is_direct:
        y = F.conv2d(x, weight, bias, *plan.spacing, x.shape[1])
    else:
        y = forward(x, weight, bias, *plan.spacing, forced)
    return y if is_plain else finished(y, residual, activation)


def _spacing(x: Tensor, weight: Tensor, stride: object, padding: object, dilation: object) -> shortcut.Spacing:
    """Return stride, padding and dilation as pairs."""
    steps, gaps = _as_pair(stride, "stride", 1), _as_pair(dilation, "dilation", 1)
    kernel = weight.shape[2:]
    pads = _same(kernel, gaps) if padding == "same" else _as_pair(padding, "padding", 0)
    extents = [gap * (k - 1) + 1 for gap, k in zip(gaps, kernel, strict=True)]
    if any(n + 2 * pad < extent for n, pad, extent in zip(x.shape[2:], pads, extents, strict=True)):
        raise InputError(
            "a padded image at least as large as the kernel",
            f"an image of {x.shape[2]}x{x.shape[3]} with padding {pads} and a kernel that spans "
            f"{extents[0]}x{extents[1]}",
            'use more padding, for instance "same"',
        )
    return steps, pads, gaps


@not_scriptable
def depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | Literal["same"] = "same",
    dilation: int = 1,
) -> Tensor:
    """Convolve every channel of a sequence with its own kernel.

    Args:
        x: Sequences (N, C, L).
        weight: Kernels (C, 1, K), as in ``nn.Conv1d(C, C, K, groups=C)``.
        bias: Optional (C,).
        stride: Step in samples.
        padding: Zeros on each side, or "same" for ``dilation * (K - 1) / 2``.
        dilation: Distance between taps in samples.

    Returns:
        (N, C, M) with M = (L + 2 padding - dilation (K - 1) - 1) // stride + 1.

    Raises:
        InputError: As `depthwise_conv2d`.
    """
    check_dense(x, weight, bias)
    check(x.dim() == 3, "an input (N, C, L)", f"{x.dim()} dimensions {tuple(x.shape)}", "add the missing ones")
    check(
        weight.dim() == 3 and weight.shape[1] == 1,
        "a weight (C, 1, K)",
        f"shape {tuple(weight.shape)}",
        "use one kernel for each channel, as nn.Conv1d(C, C, K, groups=C) holds them",
    )
    # The sequence runs down the rows: PyTorch's CPU kernels are slow for wide kernels and not for tall ones.
    y = depthwise_conv2d(
        x.unsqueeze(-1),
        weight.unsqueeze(-1),
        bias,
        stride=(stride, 1),
        padding=padding if padding == "same" else (padding, 0),
        dilation=(dilation, 1),
    )
    return y.squeeze(-1)


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check(x.dim() == 4, "an input (N, C, H, W)", f"{x.dim()} dimensions {tuple(x.shape)}", "add the missing ones")
    check(
        weight.dim() == 4 and weight.shape[1] == 1,
        "a weight (C, 1, K_h, K_w)",
        f"shape {tuple(weight.shape)}",
        "use one kernel for each channel, as nn.Conv2d(C, C, K, groups=C) holds them",
    )
    channels = x.shape[1]
    check(
        weight.shape[0] == channels,
        f"a weight with one kernel for each of the input's {channels} channels",
        f"{weight.shape[0]} kernels",
        "give both the same number of channels",
    )
    check(
        bias is None or tuple(bias.shape) == (channels,),
        f"a bias of shape ({channels},)",
        "none" if bias is None else f"shape {tuple(bias.shape)}",
        "give one number for each channel",
    )


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = autocast_dtype(x, weight, bias)
    if dtype is None:
        return x, weight, bias
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _check_types(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating(x)
    others = [weight] if bias is None else [weight, bias]
    check(
        all(other.dtype == x.dtype for other in others),
        "input, weight and bias of one dtype",
        ", ".join(str(tensor.dtype) for tensor in (x, *others)),
        "convert them to one, or use autocast",
    )
    check(
        all(other.device == x.device for other in others),
        "input, weight and bias on one device",
        ", ".join(str(tensor.device) for tensor in (x, *others)),
        "move them to one",
    )


def _as_pair(value: object, name: str, least: int) -> tuple[int, int]:
    pair: Sequence[Any] = cast("Sequence[Any]", value if isinstance(value, tuple | list) else (value, value))
    is_pair = len(pair) == 2 and all(isinstance(n, int) for n in pair)
    check(
        is_pair and min(pair) >= least,
        f"{name} of at least {least}, one whole number or two",
        f"{value!r}",
        "give (vertical, horizontal) or one number for both",
    )
    return int(pair[0]), int(pair[1])


def _same(kernel: Sequence[int], dilation: tuple[int, int]) -> tuple[int, int]:
    spans = [gap * (k - 1) for gap, k in zip(dilation, kernel, strict=True)]
    check(
        all(span % 2 == 0 for span in spans),
        'an odd kernel size for padding "same"',
        f"{kernel[0]}x{kernel[1]}",
        "use an odd size or give the padding as numbers",
    )
    return spans[0] // 2, spans[1] // 2
