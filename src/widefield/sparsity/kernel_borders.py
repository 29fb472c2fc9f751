"""Kernels whose outermost taps are all zero: the same convolution with a smaller kernel and less padding."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from widefield.sparsity.hidden_channels import set_sizes

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class CroppedKernel:
    """A convolution that has become smaller."""

    name: str
    """Its name."""

    before: tuple[int, ...]
    """Kernel size before."""

    after: tuple[int, ...]
    """Kernel size now."""


def croppable(model: nn.Module) -> dict[str, Convolution]:
    """Return the convolutions that `crop` may be called on: zero-padded, of merged units, with weights of their own.

    A unit that has a merged form and is not merged may need its kernels' sizes for that.

    Args:
        model: Any module.
    """
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _CONVOLUTIONS)
        and "weight" in module._parameters
        and module.padding_mode == "zeros"
        and holders[id(module.weight)] == 1
        and not _waits_for_merging(model, name)
    }


def zero_margins(conv: Convolution) -> tuple[int, ...]:
    """Return for each axis how many taps can be cut off at both ends, because they are zero and their padding is there.

    Args:
        conv: Zero-padded.
    """
    margins: list[int] = []
    for axis, size in enumerate(conv.kernel_size):
        used = conv.weight.detach().transpose(0, axis + 2).flatten(1).any(1)
        taps: list[int] = used.nonzero().flatten().tolist()
        margin = min(taps[0], size - 1 - taps[-1]) if taps else (size - 1) // 2
        if conv.padding == "valid":
            margin = 0
        elif conv.padding != "same":
            margin = min(margin, int(conv.padding[axis]) // conv.dilation[axis])
        margins.append(margin)
    return tuple(margins)


@torch.no_grad()
def crop(conv: Convolution, margins: tuple[int, ...]) -> None:
    """Cut off `margins` taps at both ends of each axis, and the padding that they stood over.

    Args:
        conv: Zero-padded.
        margins: At most `zero_margins(conv)` for the same function.
    """
    window = tuple(slice(m, size - m) for m, size in zip(margins, conv.kernel_size, strict=True))
    set_weight(conv, conv.weight[(slice(None), slice(None), *window)], margins)


def set_weight(conv: Convolution, weight: Tensor, margins: tuple[int, ...]) -> None:
    """Give `conv` a weight that is smaller by `margins` at both ends of each axis; negative ones make it larger."""
    conv.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=conv.weight.requires_grad)
    if not isinstance(conv.padding, str):
        padding = (p - m * gap for p, m, gap in zip(conv.padding, margins, conv.dilation, strict=True))
        cast("Any", conv).padding = tuple(padding)
    set_sizes(conv)


def _waits_for_merging(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    units = (model.get_submodule(".".join(parts[:count])) for count in range(len(parts) + 1))
    return any(
        callable(getattr(unit, "reparameterize", None)) and getattr(unit, "is_merged", True) is not True
        for unit in units
    )
