"""The tensors of a model by name, each of them once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.engine.sharding import is_sharded, laid_out_like, local

if TYPE_CHECKING:
    from collections.abc import Mapping


def _aliases(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        check(
            isinstance(value, Tensor),
            "a model whose state dict holds tensors",
            f"{type(value).__name__} under {name!r}",
            "register it as a buffer",
        )
        aliases[name] = first.setdefault(id(value), name)
        tensors.setdefault(aliases[name], value.detach())
    return tensors, aliases


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers of `model`, a tied one under its first name alone.

    Args:
        model: Any module, without the wrappers of DDP or `torch.compile`.

    Returns:
        Views of the model's own tensors, in the order of its state dict.

    Raises:
        InputError: If the state dict holds something that is not a tensor.
    """
    return _aliases(model)[0]


def full_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors`, which `unique_state` named, under every name of `model`'s state dict.

    Args:
        model: The model that the tensors belong to.
        tensors: One tensor per unique name.

    Raises:
        InputError: If the names are not those of the model.
    """
    known, aliases = _aliases(model)
    missing = sorted(known.keys() ^ tensors.keys())
    check(
        not missing,
        "the tensors of this model",
        f"a difference in {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}",
        "use the model that the weights were saved from",
    )
    return {name: tensors[source] for name, source in aliases.items()}


@torch.no_grad()
def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors`, which `unique_state` named, into `model`.

    Args:
        model: The model to fill.
        tensors: One tensor per unique name.

    Raises:
        InputError: If names, shapes or types are not those of the model.
    """
    full_state(model, tensors)
    for name, value in unique_state(model).items():
        check(
            value.shape == tensors[name].shape,
            f"{name} of shape {tuple(value.shape)}",
            f"{tuple(tensors[name].shape)}",
            "use the model that the weights were saved from",
        )
        check(
            value.dtype == tensors[name].dtype,
            f"{name} in {value.dtype}",
            f"{tensors[name].dtype}",
            "use the model that the weights were saved from",
        )
        tensor = tensors[name]
        local(value).copy_(local(laid_out_like(tensor, value)) if is_sharded(value) else tensor)
