"""What an optimizer remembers of the gradients of a weight, and which of it an inactive weight keeps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from widefield.sparsity.config import SparsityConfig

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
"""Names under which optimizers keep a running mean of the gradient."""

# Running averages of gradients and of their squares, by the names that torch's and timm's optimizers give them.
_AVERAGES = re.compile(r"exp_|square_avg|acc_delta|sum$|.*grad")

_EPSILON = 1e-8


def momentum_of(state: Mapping[str, Any]) -> Tensor | None:
    """Return the running mean of the gradient, for Adam and its kin over the root of that of its square.

    Args:
        state: Of one parameter.

    Returns:
        What growth by momentum ranks, or None if the optimizer has none.
    """
    first = next((state[name] for name in FIRST_MOMENTS if isinstance(state.get(name), Tensor)), None)
    second = state.get("exp_avg_sq")
    if first is None or not isinstance(second, Tensor) or second.shape != first.shape:
        return first
    dtype = torch.promote_types(first.dtype, torch.float32)
    return first.to(dtype) / (second.to(dtype).sqrt() + _EPSILON)


def blanked_at_steps(state: Mapping[str, Any], like: Tensor, config: SparsityConfig) -> Iterator[Tensor]:
    """Yield those tensors of a state that are zero wherever the weight is inactive.

    Args:
        state: Of one parameter.
        like: The parameter.
        config: Says which moments are kept.
    """
    by_momentum = config.grow in ("momentum", "momentum_neuron")
    for name, value in _of_the_weights(state, like):
        if _AVERAGES.match(name):
            is_kept = config.moments == "kept" or by_momentum
        else:
            is_kept = by_momentum and name in FIRST_MOMENTS
        if not is_kept:
            yield value


def blanked_at_changes(state: Mapping[str, Any], like: Tensor, config: SparsityConfig) -> Iterator[Tensor]:
    """Yield those tensors of a state that start at zero where a change of the mask has dropped or grown a weight.

    Args:
        state: Of one parameter.
        like: The parameter.
        config: Says which moments are kept.
    """
    if config.moments == "blanked":
        yield from (value for _, value in _of_the_weights(state, like))


def _of_the_weights(state: Mapping[str, Any], like: Tensor) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == like.shape and torch.is_floating_point(value):
            yield name, value
