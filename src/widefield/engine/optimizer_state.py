"""The state of an optimizer, taken apart into tensors and JSON by the names of the parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.engine.sharding import laid_out_like

if TYPE_CHECKING:
    from collections.abc import Mapping


def _encode(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value
        return {"tensor": {"name": key, "dtype": str(value.dtype), "shape": list(value.shape)}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_encode(part, f"{key}.{index}", tensors) for index, part in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"dict": {name: _encode(part, f"{key}.{name}", tensors) for name, part in value.items()}}
    raise InputError(
        "an optimizer whose state is made of tensors, numbers and strings",
        f"{type(value).__name__} at {key!r}",
        "use another optimizer",
    )


def _decode(value: Any, tensors: Mapping[str, Tensor], like: Tensor | None) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        tensor = _known_tensor(content, tensors)
        if like is not None and like.shape == tensor.shape:
            return laid_out_like(tensor, like)
        return tensor.clone()
    if kind == "dict":
        return {name: _decode(part, tensors, like) for name, part in content.items()}
    parts = [_decode(part, tensors, like) for part in content]
    return tuple(parts) if kind == "tuple" else parts


def _known_tensor(kept: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    # The first runs kept the name alone.
    name = kept["name"] if isinstance(kept, dict) else kept
    check(
        name in tensors,
        f"a checkpoint with the tensor {name!r} of the optimizer",
        "one without it",
        "resume from an earlier checkpoint",
    )
    tensor = tensors[name]
    if isinstance(kept, dict):
        check(
            (str(tensor.dtype), list(tensor.shape)) == (kept["dtype"], kept["shape"]),
            f"{name} of the optimizer in {kept['dtype']} of shape {tuple(kept['shape'])}",
            f"{tensor.dtype} of shape {tuple(tensor.shape)}",
            "resume from an earlier checkpoint",
        )
    return tensor


def _check_options(live: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    for name in sorted(live.keys() & kept.keys()):
        kinds = [_kind(options[name]) for options in (live, kept)]
        check(
            None in kinds or kinds[0] == kinds[1],
            f"{name} of the optimizer to be of kind {kinds[0]}",
            f"{kept[name]!r} in the checkpoint",
            "resume from an earlier checkpoint",
        )


def _kind(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, Tensor) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return "number"
    return "list" if isinstance(value, (list, tuple)) else type(value).__name__


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[known.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]
    check(
        all(all(names) for names in groups),
        "an optimizer over the parameters of the model",
        "one with other parameters",
        "build it from this model",
    )
    return groups


def flatten_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take the state of `optimizer` apart.

    Args:
        optimizer: A torch optimizer.
        model: The model whose parameters it updates.

    Returns:
        The tensors by name, and all the rest as a JSON value that refers to them.

    Raises:
        InputError: If the state holds something else, or parameters that are not the model's.
    """
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    groups, state = [], {}
    for number, (names, group) in enumerate(zip(_names(optimizer, model), packed["param_groups"], strict=True)):
        options = {name: value for name, value in group.items() if name != "params"}
        groups.append({"params": names, "options": _encode(options, f"groups.{number}", tensors)})
        for name, index in zip(names, group["params"], strict=True):
            if index in packed["state"]:
                state[name] = _encode(packed["state"][index], f"state.{name}", tensors)
    return tensors, {"groups": groups, "state": state}


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]
) -> None:
    """Put back what `flatten_optimizer_state` took apart.

    Args:
        optimizer: An optimizer built in the same way over the same model.
        model: The model whose parameters it updates.
        tensors: The tensors by name.
        scalars: The JSON value that came with them.

    Raises:
        InputError: If names, order or grouping of the parameters differ, or tensors are missing or not as they were.
    """
    names = _names(optimizer, model)
    kept = [group["params"] for group in scalars["groups"]]
    check(
        names == kept,
        "an optimizer with the parameters and groups of the checkpoint",
        f"{sum(map(len, names))} parameters in {len(names)} groups "
        f"(the checkpoint has {sum(map(len, kept))} in {len(kept)}, or another order)",
        "resume with the same model and optimizer settings",
    )
    groups, state = [], {}
    for live, packed, group in zip(
        optimizer.param_groups, optimizer.state_dict()["param_groups"], scalars["groups"], strict=True
    ):
        options = _decode(group["options"], tensors, None)
        _check_options(live, options)
        groups.append({**options, "params": packed["params"]})
        for name, index, parameter in zip(group["params"], packed["params"], live["params"], strict=True):
            if name in scalars["state"]:
                state[index] = _decode(scalars["state"][name], tensors, parameter)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
