"""What a classifier's file says of itself, and what it may say: a card is data, often somebody else's.

A name or a setting on it decides what is made, so both come from lists of what is known; nothing on a card leads to
another file.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
from torch import nn

from widefield._core.checks import check
from widefield.data import DataConfig
from widefield.models import create_model, list_models
from widefield.models.size import check_size
from widefield.tasks.classification.config import ModelConfig

Form = Literal["branched", "merged"]


@dataclass(frozen=True, kw_only=True)
class ClassifierCard:
    """What a classifier's file says of itself."""

    model: ModelConfig
    """The network."""
    data: DataConfig
    """The data it was trained on, and how images are prepared."""
    classes: tuple[str, ...]
    """Name of each output."""
    form: Form = "branched"
    """Train form or inference form."""
    split: Literal["validation", "test"] | None = "validation"
    """The split that its run was scored on; None if there was none to score on."""


# What timm takes to find weights; the file has its own.
_SOURCES = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")

# Where a network lies and in which type is not its own affair, and neither are these.
_NOT_SETTINGS = ("self", "device", "dtype", *_SOURCES)

_LONGEST_OPTION = 1000
_DEEPEST = 2


def check_card(card: ClassifierCard, file: Path, named: str | None = None) -> None:
    """Raise unless what a card asks for is a known network with settings of its own, and its data is on this machine.

    Args:
        card: The card.
        file: Where it was read, for the message.
        named: The name of the model that the user typed; if the card has the same, it is the user's word.

    Raises:
        InputError: If the name is none of ours or of timm's plain names, an option is none of that network's or no
            plain value, or the data root is an address.
    """
    name = card.model.name
    known = name.partition(".")[0]
    check(
        name == named
        or (re.fullmatch(r"[\w.]+", name) is not None and (known in list_models() or timm.is_model(known))),
        "a card with the name of one of our models or of timm's",
        f"{file} with the model {name[:200]!r}",
        "name the same model with --model if you trust its source",
    )
    root = card.data.root
    check(
        "://" not in root and "pipe:" not in root and root.isprintable(),
        "a card whose data is on this machine",
        f"{file} with the data root {root[:200]!r}",
        "write the file again with widefield, from data that is here",
    )
    if card.model.options:
        _check_options(card.model, file)


def without_sources(card: ClassifierCard) -> ClassifierCard:
    """Return a card without options that say where first weights came from."""
    kept = tuple(option for option in card.model.options if option.partition("=")[0] not in _SOURCES)
    return replace(card, model=replace(card.model, options=kept))


def _check_options(model: ModelConfig, file: Path) -> None:
    """Options are the keyword arguments of the network's class, with plain values."""
    fix = "write the file again with widefield, or load its weights into a network that you make"
    long = [option for option in model.options if len(option) > _LONGEST_OPTION]
    check(not long, "a card with short options", f"{file} with one of {len(long[0]) if long else 0:,} letters", fix)
    named = {option.partition("=")[0] for option in model.options}
    settings = _settings_of(check_size(lambda: create_model(model.name), model.name))
    odd = sorted(named - settings)
    check(not odd, f"a card with settings of {model.name}", f"{file} with {', '.join(map(repr, odd))[:200]}", fix)
    values: Mapping[str, Any] = model.arguments()
    nested = sorted(name for name in named if not _is_plain(values[name]))
    check(
        not nested,
        "a card with options that are numbers, words, true, false or lists of them",
        f"{file} with {', '.join(map(repr, nested))}",
        fix,
    )


def _settings_of(model: nn.Module) -> set[str]:
    """Names of the arguments of a network's class."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(type(model)).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind in kinds} - set(_NOT_SETTINGS)


def _is_plain(value: object, depth: int = 0) -> bool:
    if isinstance(value, list):
        return depth < _DEEPEST and all(_is_plain(item, depth + 1) for item in value)
    return isinstance(value, bool | int | float | str)
