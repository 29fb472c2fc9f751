"""Weights from one layout to another, and into a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from widefield._core.checks import check
from widefield._core.files import write_atomically
from widefield.checkpoints.files import write_weights
from widefield.checkpoints.layouts import Family, Layout, in_layout

SUFFIXES = (".safetensors", ".pth", ".pt")
"""Endings of the files that can be written."""

_CLASSIFIER = ("norm.", "head.")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A state dict in another layout."""

    tensors: dict[str, Tensor]
    """Its names there to the same tensors."""
    left_out: Mapping[str, int]
    """Parts of a classifier that a backbone has no place for, "norm" and "head", to how many tensors they have."""


def convert(tensors: Mapping[str, Tensor], family: Family, layout: Layout) -> Conversion:
    """Give a state dict of ours the names of a layout.

    Args:
        tensors: Our names to tensors.
        family: Whose it is.
        layout: Whose names to give; for "backbone" the final norm and the head are left out.

    Raises:
        InputError: If a name has no counterpart there.
    """
    left_out: Counter[str] = Counter()
    if layout == "backbone":
        left_out.update(name.partition(".")[0] for name in tensors if name.startswith(_CLASSIFIER))
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_CLASSIFIER)}
    return Conversion(tensors=in_layout(tensors, family, layout), left_out=dict(left_out))


def check_new_file(path: Path) -> None:
    """Raise unless `path` is one for a new file of weights.

    Raises:
        InputError: If its ending is of no kind that can be written, it exists, or its folder does not.
    """
    check(
        path.suffix in SUFFIXES,
        f"a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}",
        str(path),
        "name it so: its ending says which kind to write",
    )
    check(not path.exists(), "a new file to write", f"{path}, which exists", "name another with --output")
    check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")


def write_converted(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a new file of weights, whole or not at all.

    Args:
        path: Ends in ".safetensors", or in ".pth" or ".pt" for a PyTorch file with the bare state dict.
        tensors: Names to tensors.
        metadata: Strings for the header of a safetensors file.

    Raises:
        InputError: As `check_new_file`.
    """
    check_new_file(path)
    if path.suffix == ".safetensors":
        write_weights(path, tensors, metadata)
    else:
        write_atomically(path, lambda partial: torch.save(dict(tensors), partial))
