"""Typed configs from words: tyro parses; what it does not know becomes one sentence with the nearest real field."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast, get_args, get_type_hints

import tyro

from widefield._core.checks import nearest
from widefield._core.configs import check_finite
from widefield._core.errors import InputError

Config = TypeVar("Config")


def parse(kind: type[Config], words: Sequence[str], *, command: str, default: Config | None = None) -> Config:
    """Parse the words of one command.

    Args:
        kind: Dataclass whose fields are the options; nested ones are options by their path (``--data.root``).
        words: What was typed after the command.
        command: Its name, for the usage line.
        default: Values of the options that were not typed.

    Returns:
        The config. ``--help`` prints help and leaves with code 0.

    Raises:
        InputError: If there is an unknown option, or a value that it cannot have, such as an infinite number.
    """
    options: dict[str, Any] = {} if default is None else {"default": default}
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            config, unknown = tyro.cli(
                kind,
                args=list(words),
                prog=f"widefield {command}",
                return_unknown_args=True,
                config=(tyro.conf.FlagConversionOff,),
                **options,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise _bad_value(told.getvalue(), command) from None
    if unknown:
        raise _unknown_option(unknown, kind, command)
    check_finite(config)
    return config


def _bad_value(told: str, command: str) -> InputError:
    """Make a sentence of the box in which tyro reports an error."""
    lines = [line.strip(" │╭╮╰╯─") for line in told.splitlines() if line.strip(" │╭╮╰╯")]
    body = " ".join(lines[1 : lines.index("")] if "" in lines else lines[1:])
    ours = re.search(r"Expected (?P<expected>.+?), but got (?P<got>.+): (?P<fix>[^:]+)\.$", body)
    if ours is not None:
        return InputError(**ours.groupdict())
    reason = body.rstrip(".")
    return InputError(
        f"options that widefield {command} takes", f"others ({reason})", f"see widefield {command} --help"
    )


def _unknown_option(unknown: Sequence[str], kind: type[Any], command: str) -> InputError:
    word = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
    if not word.startswith("-"):
        return InputError(f"an option of widefield {command}", repr(word), f"see widefield {command} --help")
    names = _option_names(kind)
    typed = word.lstrip("-").replace("_", "-")
    leaf = typed.rsplit(".", 1)[-1]
    close = [name for name in names if name.rsplit(".", 1)[-1] == leaf] + nearest(typed, names)
    hint = " or ".join(f"--{name}" for name in dict.fromkeys(close[:3]))
    fix = f"did you mean {hint}" if hint else f"see widefield {command} --help"
    return InputError(f"an option of widefield {command}", word, fix)


def _option_names(kind: type[Any], prefix: str = "") -> list[str]:
    hints = get_type_hints(kind)
    names: list[str] = []
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        hint = hints[field.name]
        # A nested config that may be None is among the parts of a union, and an option by itself besides.
        kinds: tuple[Any, ...] = (hint, *get_args(hint))
        nested = [cast("type[Any]", kind) for kind in kinds if dataclasses.is_dataclass(kind)]
        if hint not in nested:
            names.append(name)
        for kind in nested:
            names += _option_names(kind, f"{name}.")
    return names
