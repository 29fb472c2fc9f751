"""Frozen dataclasses to plain values and back, for the config files beside the runs."""

from __future__ import annotations

import dataclasses
import math
import reprlib
import sys
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from widefield._core.checks import check, check_name

Config = TypeVar("Config")


def _repr_of_what_people_write() -> reprlib.Repr:
    """Whole for what people write; what a hostile file repeats a million times is cut."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    short.maxlong = 100
    return short


_shown = _repr_of_what_people_write().repr


def to_plain(config: Any) -> Any:
    """Return a dataclass as nested dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_plain(item) for item in cast("tuple[Any, ...]", config)]
    if isinstance(config, Path):
        return str(config)
    return config


def from_plain(kind: type[Config], values: object, path: str = "") -> Config:
    """Build a dataclass from what `to_plain` gave, checking names and types; what is left out keeps its default.

    Args:
        kind: The dataclass.
        values: A mapping of its fields.
        path: Where in the whole config this is, for messages.

    Returns:
        The config.

    Raises:
        InputError: If a field is unknown (the nearest names are given) or missing, or a value has another type or is a
            number that is not finite.
    """
    check(
        isinstance(values, Mapping),
        f"a mapping of the fields of {path.rstrip('.') or 'the config'}",
        _shown(values),
        "write one line for each field",
    )
    hints = get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(cast("Any", kind))]
    arguments: dict[str, Any] = {}
    for name, value in cast("Mapping[str, Any]", values).items():
        check_name(str(name), names, f"field of {path.rstrip('.') or 'the config'}")
        arguments[name] = _value(hints[name], value, f"{path}{name}")
    missing = missing_fields(kind, arguments)
    check(
        not missing,
        f"all fields of {path.rstrip('.') or 'the config'}",
        f"none called {', '.join(map(repr, missing))}",
        "add what is missing",
    )
    return kind(**arguments)


def missing_fields(kind: type, given: Collection[str]) -> list[str]:
    """Return the names of a dataclass's fields that have no default and are not among the given ones."""
    return [
        field.name
        for field in dataclasses.fields(cast("Any", kind))
        if field.name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]


def check_finite(config: Any, path: str = "") -> None:
    """Raise if a number anywhere in a dataclass is infinite or NaN.

    Args:
        config: The dataclass, or a value in it.
        path: Where in the whole config this is, for the message.

    Raises:
        InputError: With the field.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        for field in dataclasses.fields(config):
            check_finite(getattr(config, field.name), f"{path}.{field.name}" if path else field.name)
    elif isinstance(config, tuple | list):
        for item in cast("tuple[Any, ...]", config):
            check_finite(item, path)
    elif isinstance(config, float):
        check(math.isfinite(config), f"{path} to be a finite number", f"{config}", "give one")


def _value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_plain(cast("type[Any]", hint), value, f"{path}.")
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(kind for kind in arguments if kind is not type(None)), value, path)
    if origin is Literal:
        check(
            value in arguments,
            f"{path} to be one of {', '.join(map(repr, arguments))}",
            _shown(value),
            "use one of them",
        )
        return value
    if origin is tuple:
        check(isinstance(value, list | tuple), f"{path} to be a list", _shown(value), "write it as [a, b]")
        items = cast("list[Any]", value)
        kinds = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else list(arguments)
        check(len(items) == len(kinds), f"{path} to be {len(kinds)} values", f"{len(items)}", "give that many")
        return tuple(_value(kind, item, path) for kind, item in zip(kinds, items, strict=True))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        is_huge = isinstance(value, int) and abs(value) > sys.float_info.max
        got = "an integer that is too large for one" if is_huge else f"{value}"
        check(not is_huge and math.isfinite(value), f"{path} to be a finite number", got, "change its value")
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    fits = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    check(fits, f"{path} to be of type {hint.__name__}", _shown(value), "change its value")
    return value
