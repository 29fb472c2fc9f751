"""Modules of a network by patterns of their names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from widefield._core.checks import check, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


def select_modules(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules whose names match one of `patterns`, in the order of the model.

    Args:
        model: Any module.
        patterns: Names such as "stages.2.blocks.*", where a star stands for anything within one part between dots.

    Raises:
        InputError: If a pattern matches no module.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    found: set[str] = set()
    for pattern in patterns:
        matching = [name for name in modules if _matches(name, pattern)]
        close = ", ".join(nearest(pattern, modules)) or "names of model.named_modules()"
        check(bool(matching), "a pattern that matches modules of the model", repr(pattern), f"use one such as {close}")
        found.update(matching)
    return {name: module for name, module in modules.items() if name in found}


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
