"""Weights in files: safetensors written atomically, these and PyTorch files read without running code from them."""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield._core.files import write_atomically

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


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors; a crash leaves the earlier file or none.

    Args:
        path: Where to.
        tensors: Names to tensors; moved to the CPU and made contiguous.
        metadata: Strings for the header of the file.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors writes a broken header for an empty dict of metadata.
    write_atomically(path, lambda partial: save_file(flat, partial, metadata=dict(metadata) if metadata else None))


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
        InputError: If the file is missing, truncated, neither of the two, holds objects that could run code, or has no
            such state dict.
    """
    check(path.exists(), "a checkpoint file", f"no file at {path}", "check the path")
    check(path.is_file(), "a checkpoint file", f"a folder at {path}", "name the file in it")
    with path.open("rb") as file:
        start = file.read(10)
    check(len(start) > 0, "a checkpoint file", f"an empty file at {path}", "copy or download it again")
    # A safetensors file starts with the length of its header and "{"; a PyTorch file is a zip archive or a pickle.
    is_torch = zipfile.is_zipfile(path) or start[:2] == b"PK" or start[:1] == b"\x80"
    if is_torch and start[8:9] != b"{":
        return unwrap(_read_torch(path), str(path), weights)
    check(
        weights != "ema",
        "a file with a moving average of the weights",
        f"the safetensors file {path}, which has one state dict",
        "leave the choice of weights out",
    )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(tensors=tensors, metadata=dict(file.metadata() or {}))
    except SafetensorError as error:
        raise InputError(
            "a complete safetensors or PyTorch checkpoint",
            f"{path}, which is truncated or of another kind ({error})",
            "copy or download it again",
        ) from error


def unwrap(content: object, source: str, weights: Weights = "auto") -> Checkpoint:
    """Find the state dict in what a PyTorch file holds.

    A prefix "module." that is before every name, as `torch.nn.parallel` leaves it, is taken away.

    Args:
        content: A state dict, or a dict with one under "state_dict", "model", "model_ema" and the like.
        source: Where it comes from, for the message.
        weights: As in `read_checkpoint`.

    Raises:
        InputError: If there is no such state dict.
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
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    others = tuple(name for name in there if name != taken)
    return Checkpoint(tensors=tensors, metadata={}, taken=taken, others=others)


def _numpy_number(dtype: np.dtype[Any], content: object = None) -> object:
    """Make a NumPy number from its bytes, as its pickle asks for, and nothing that has a reference in it."""
    if dtype.hasobject or not isinstance(content, bytes):
        raise pickle.UnpicklingError(f"unsupported class: a NumPy number of type {dtype}")
    return np.frombuffer(content, dtype)[0]


_NUMBER_TYPES = ("?", "b", "h", "i", "l", "q", "B", "H", "I", "L", "Q", "e", "f", "d")

# What training scripts store beside the weights; none of it does anything when it is made.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_numpy_number, "numpy.core.multiarray.scalar"),
    (_numpy_number, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(code)) for code in _NUMBER_TYPES},
]

_REFUSALS = ("unsupported global", "unsupported class", "can only build")
"""What torch's unpickler says of objects that it does not make."""


def _read_torch(path: Path) -> object:
    try:
        # An open file, since torch goes by the name of a path: one that ends in .safetensors is not unpickled.
        with path.open("rb") as file, safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(reason in str(error).lower() for reason in _REFUSALS):
            raise _damaged(path, error) from error
        raise InputError(
            "a checkpoint that holds tensors alone",
            f"{path} with a pickled object, which could run code and was not loaded",
            "save the state dict alone, with model.state_dict(), or as safetensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, struct.error) as error:
        # What the unpickler meets in a damaged file decides which of them it raises.
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        "a complete PyTorch checkpoint",
        f"{path}, which is truncated or damaged ({(str(error).splitlines() or [type(error).__name__])[0]})",
        "copy or download it again",
    )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict that must fit a model exactly.

    Args:
        model: The model.
        state: Names to tensors.
        source: Where the weights come from, for the message.

    Raises:
        InputError: If a name is missing or too many, or a shape differs; the model is then unchanged.
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
    model.load_state_dict(dict(cast("Any", state)), strict=True)
