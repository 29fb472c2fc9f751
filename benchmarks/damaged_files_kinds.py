"""What a kind of damage is: a function of a whole file and a draw, which says what it did."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

ALL = ("archive", "pickle", "safetensors", "card")
TORCH = ("archive", "pickle")
SAFE = ("safetensors", "card")


class Source(Protocol):
    """The whole file: its format, and its weights under its own names and ours."""

    @property
    def format(self) -> str: ...
    @property
    def state(self) -> dict[str, Tensor]: ...
    @property
    def ours(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Mutated:
    """What was done to a file."""

    detail: str = ""
    means: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights under our names that the file now spells out in place of its own."""
    is_guarded: bool = True
    """Whether the format has a checksum, or the change shows by itself."""


@dataclass(frozen=True)
class Mutation:
    """A kind of damage."""

    name: str
    formats: tuple[str, ...]
    apply: Callable[[Path, Any, random.Random], Mutated]


MUTATIONS: list[Mutation] = []
Apply = Callable[[Path, Any, random.Random], Mutated | None]


def mutation(*formats: str) -> Callable[[Apply], Apply]:
    """Add a function to the kinds of damage, for files of some formats."""

    def add(function: Apply) -> Apply:
        def apply(path: Path, source: Any, draw: random.Random) -> Mutated:
            return function(path, source, draw) or Mutated()

        MUTATIONS.append(Mutation(function.__name__, formats, apply))
        return function

    return add


def _guarded(source: Source) -> bool:
    return source.format in ("archive", "card")


def is_guarded(source: Source) -> bool:
    """Whether a format has a checksum."""
    return source.format in ("archive", "card")
