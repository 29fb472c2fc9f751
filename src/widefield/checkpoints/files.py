"""Weights in files: safetensors written atomically, these and PyTorch files read without running code from them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield._core.files import write_atomically

_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema")


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
    """Read a state dict and the strings of its header.

    PyTorch files are read with ``weights_only=True`` and unwrapped ("state_dict", "model" and the like).

    Args:
        path: A safetensors or PyTorch file.

    Returns:
        Names to tensors on the CPU, and the metadata (empty for PyTorch files).

    Raises:
        InputError: If the file is missing, truncated, neither of the two, holds objects that are not tensors, or has no
            state dict.
    """
    check(path.exists(), "a checkpoint file", f"no file at {path}", "check the path")
    check(path.is_file(), "a checkpoint file", f"a folder at {path}", "name the file in it")
    with path.open("rb") as file:
        start = file.read(10)
    check(len(start) > 0, "a checkpoint file", f"an empty file at {path}", "copy or download it again")
    # A safetensors file starts with the length of its header and "{"; a PyTorch file is a zip archive or a pickle.
    is_torch = zipfile.is_zipfile(path) or start[:2] == b"PK" or start[:1] == b"\x80"
    if is_torch and start[8:9] != b"{":
        return _read_torch(path), {}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            "a complete safetensors or PyTorch checkpoint",
            f"{path}, which is truncated or of another kind ({error})",
            "copy or download it again",
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        # An open file, since torch goes by the name of a path: one that ends in .safetensors is not unpickled.
        with path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not any(f"unsupported {kind}" in str(error).lower() for kind in ("global", "class")):
            raise _damaged(path, error) from error
        raise InputError(
            "a checkpoint that holds tensors alone",
            f"{path} with a pickled object, which could run code and was not loaded",
            "save the state dict alone, with model.state_dict(), or as safetensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, struct.error) as error:
        # What the unpickler meets in a damaged file decides which of them it raises.
        raise _damaged(path, error) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    is_state = isinstance(content, dict) and bool(content) and all(isinstance(v, Tensor) for v in content.values())
    kind = (
        f"a dict with {', '.join(map(repr, list(content)[:3]))}"
        if isinstance(content, dict)
        else type(content).__name__
    )
    check(is_state, "a state dict (names to tensors)", f"{kind} in {path}", "save model.state_dict()")
    return cast("dict[str, Tensor]", content)


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
