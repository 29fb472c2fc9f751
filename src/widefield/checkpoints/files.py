"""Weights in files: safetensors and PyTorch files, read without running code from them, and into a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.checkpoints.kinds import check_is_file
from widefield.checkpoints.safetensors_files import read_safetensors
from widefield.checkpoints.safetensors_files import write_weights as write_weights
from widefield.checkpoints.tensors import check_readable, check_types, check_values
from widefield.checkpoints.torch_files import is_torch_file, read_torch

Weights = Literal["auto", "model", "ema"]

_MODEL_WRAPPERS = ("state_dict", "model", "model_state_dict")
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict")
_WRAPPERS: dict[Weights, tuple[str, ...]] = {
    "auto": _MODEL_WRAPPERS + _EMA_WRAPPERS,
    "model": _MODEL_WRAPPERS,
    "ema": _EMA_WRAPPERS,
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    """The state dict."""
    metadata: dict[str, str]
    """Strings of a safetensors header; empty for PyTorch files."""
    taken: str | None = None
    """Under which name the state dict lay in a PyTorch file; none if it was bare."""
    others: tuple[str, ...] = ()
    """Names of further state dicts in the file, which were left there."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict and the strings of its header, as `read_checkpoint` does.

    Args:
        path: A safetensors or PyTorch file.

    Returns:
        Names to tensors on the CPU, and the metadata (empty for PyTorch files).

    Raises:
        InputError: As `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    return checkpoint.tensors, checkpoint.metadata


def read_checkpoint(path: Path, weights: Weights = "auto") -> Checkpoint:
    """Read a state dict from a file without running code from it.

    PyTorch files are read with ``weights_only=True`` and unwrapped ("state_dict", "model" and the like). Beside the
    tensors, the settings that training scripts store may lie there: `argparse.Namespace` and NumPy's numbers.

    Args:
        path: A safetensors or PyTorch file.
        weights: Which state dict to take where there are several: the "model" that was trained, or the "ema", the
            moving average of its weights; "auto" prefers the former.

    Raises:
        InputError: If the file is missing, truncated, neither of the two, differs from its checksum, holds objects that
            could run code, or has no such state dict; or as `unwrap`.
    """
    check_is_file(path)
    try:
        is_empty, is_torch = path.stat().st_size == 0, is_torch_file(path)
    except OSError as error:
        raise InputError("a checkpoint that can be read", f"{path} ({error.strerror})", "check its rights") from error
    check(not is_empty, "a checkpoint file", f"an empty file at {path}", "copy or download it again")
    if is_torch:
        checkpoint = unwrap(read_torch(path), str(path), weights)
        empty = [name for name, tensor in checkpoint.tensors.items() if tensor.is_meta]
        check(
            not empty,
            "tensors with values",
            f"{path} with {len(empty)} on the meta device, which have none, the first {empty[0] if empty else ''!r}",
            "save the state dict of a model that has its weights",
        )
        return checkpoint
    check(
        weights != "ema",
        "a file with a moving average of the weights",
        f"the safetensors file {path}, which has one state dict",
        "leave the choice of weights out",
    )
    tensors, metadata = read_safetensors(path)
    check_readable(tensors, str(path))
    return Checkpoint(tensors=tensors, metadata=metadata)


def unwrap(content: object, source: str, weights: Weights = "auto") -> Checkpoint:
    """Find the state dict in what a PyTorch file holds.

    A prefix "module." that is before every name, as `torch.nn.parallel` leaves it, is taken away.

    Args:
        content: A state dict, or a dict with one under "state_dict", "model", "model_ema" and the like.
        source: Where it comes from, for the message.
        weights: As in `read_checkpoint`.

    Raises:
        InputError: If there is no such state dict, a key is no name, or a tensor is of a type that weights do
            not have.
    """
    there = [name for name in _WRAPPERS["auto"] if isinstance(content, dict) and isinstance(content.get(name), Mapping)]
    fitting = [name for name in _WRAPPERS[weights] if name in there]
    bare_is_meant = weights != "ema" and not there
    check(
        bool(fitting) or bare_is_meant,
        "a checkpoint with a moving average of the weights" if weights == "ema" else "a checkpoint of a trained model",
        f"{source} with {', '.join(map(repr, there)) or 'one state dict'}",
        "leave the choice of weights out",
    )
    taken = fitting[0] if fitting else None
    if taken is not None:
        content = cast("dict[str, Any]", content)[taken]
    # mmengine counts the updates of a moving average among its tensors.
    if taken == "ema_state_dict":
        content = {name: value for name, value in cast("dict[str, Any]", content).items() if name != "steps"}
    is_state = isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())
    kind = (
        f"a dict with {', '.join(map(repr, list(content)[:3]))}"
        if isinstance(content, dict)
        else type(content).__name__
    )
    check(is_state, "a state dict (names to tensors)", f"{kind} in {source}", "save model.state_dict()")
    tensors = dict(cast("Mapping[str, Tensor]", content))
    check_readable(tensors, source)
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    others = tuple(name for name in there if name != taken)
    return Checkpoint(tensors=tensors, metadata={}, taken=taken, others=others)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict that must fit a model exactly.

    Args:
        model: The model.
        state: Names to tensors.
        source: Where the weights come from, for the message.

    Raises:
        InputError: If a name is missing or too many, a shape differs, a type is of another kind, or a value is not
            finite; the model is then unchanged.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    surplus = [name for name in state if name not in own]
    misshapen = [name for name in own if name in state and state[name].shape != own[name].shape]
    problems = [
        f"{len(names)} names {what} (first {names[0]!r})"
        for names, what in ((missing, "missing"), (surplus, "too many"))
        if names
    ]
    if misshapen:
        name = misshapen[0]
        problems.append(f"{name!r} is {tuple(state[name].shape)} there and {tuple(own[name].shape)} in the model")
    check(
        not problems,
        f"weights of {type(model).__name__} in this configuration",
        f"{source} with {'; '.join(problems)}",
        "use the checkpoint of this model, with the same sizes and number of classes",
    )
    check_types(own, state, {}, source)
    check_values(state, {}, source, like=own)
    model.load_state_dict(dict(cast("Any", state)), strict=True)
