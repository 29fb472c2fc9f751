"""Pure functions on weights and biases: what folding a normalisation or adding a branch does to them.

All of them compute in float64 and return float64; whoever stores the result converts it once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield._core.checks import check


def affine_of_batch_norm(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return (scale, shift), each (C,), with ``BatchNorm(x) = scale x + shift`` in evaluation mode.

    scale = weight / sqrt(variance + eps), shift = bias - mean scale; a missing weight is 1, a missing bias 0.
    """
    scale = (variance.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def fold_affine_after(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of ``scale * (conv(x, weight) + bias) + shift`` as one convolution.

    Args:
        weight: (C_out, ...).
        bias: (C_out,) or none.
        scale: (C_out,).
        shift: (C_out,).
    """
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return folded, shift if bias is None else shift + bias.double() * scale


def fold_affine_before(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of ``conv(scale * x + shift, weight) + bias`` as one convolution.

    Exact only without zero padding, since the padding is not shifted.

    Args:
        weight: (C_out, C_in, ...), not grouped.
        bias: (C_out,) or none.
        scale: (C_in,).
        shift: (C_in,).
    """
    per_input = [1, -1, *[1] * (weight.dim() - 2)]
    constant = (weight.double() * shift.reshape(per_input)).flatten(1).sum(1)
    folded = weight.double() * scale.reshape(per_input)
    return folded, constant if bias is None else constant + bias.double()


def embed_kernel(weight: Tensor, kernel_size: tuple[int, int]) -> Tensor:
    """Return `weight` (..., k_h, k_w) in the centre of zeros (..., K_h, K_w): the same "same" convolution.

    Raises:
        InputError: If it does not fit, or a difference of sizes is odd so that the centres differ.
    """
    margins = [large - small for large, small in zip(kernel_size, weight.shape[-2:], strict=True)]
    check(
        all(margin >= 0 and margin % 2 == 0 for margin in margins),
        f"a kernel that fits the centre of {kernel_size[0]}x{kernel_size[1]}",
        f"one of {weight.shape[-2]}x{weight.shape[-1]}",
        "use sizes that are both odd or both even, the smaller one first",
    )
    vertical, horizontal = (margin // 2 for margin in margins)
    return F.pad(weight, (horizontal, horizontal, vertical, vertical))


def as_double(tensor: Tensor) -> Tensor:
    """Return `tensor`, detached, in float64 on the CPU (some accelerators have none); one without values stays so."""
    return tensor.detach().to("meta" if tensor.is_meta else "cpu", torch.float64)
