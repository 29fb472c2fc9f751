"""Guards: a condition, and the three parts of the sentence that is raised when it does not hold."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from widefield._core.errors import InputError


def check(condition: bool, expected: str, got: str, fix: str) -> None:
    """Raise `InputError` unless `condition` holds.

    Args:
        condition: What must be true.
        expected: What would have been accepted.
        got: What came instead.
        fix: What to do about it.

    Raises:
        InputError: If `condition` is false.
    """
    if not condition:
        raise InputError(expected, got, fix)


def check_range(name: str, value: float, least: float, most: float, fix: str = "give one") -> None:
    """Raise `InputError` unless ``least <= value <= most``; NaN never is.

    Args:
        name: What the number is, for the message.
        value: The number.
        least: The smallest that is accepted.
        most: The largest that is accepted, infinity for any finite number.
        fix: What to do about it.

    Raises:
        InputError: If it is outside.
    """
    fits = least <= value <= most and math.isfinite(value)
    bounds = [f"at least {least:g}"] * math.isfinite(least) + [f"at most {most:g}"] * math.isfinite(most)
    check(fits, f"{name} as a finite number{' of ' * bool(bounds)}{' and '.join(bounds)}", f"{value}", fix)


def check_seed(name: str, value: int) -> None:
    """Raise `InputError` unless a seed is one of 64 bits, which is what torch's generators take.

    Raises:
        InputError: If it is negative or longer.
    """
    check(0 <= value < 1 << 64, f"{name} from 0 to 2 ** 64 - 1", f"{value}", "use a seed of 64 bits, such as 0")


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to `count` of the `known` names that are most like `name`, best first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)


def check_name(name: str, known: Iterable[str], kind: str) -> None:
    """Raise `InputError` with the nearest real names unless `name` is one of `known`.

    Args:
        name: The name to look for.
        known: All real names.
        kind: What is named, for the message ("recipe", "backend").

    Raises:
        InputError: If `name` is unknown.
    """
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {' or '.join(repr(other) for other in close)}?" if close else f"use one of {', '.join(names)}"
    check(name in names, f"the name of a {kind}", repr(name), hint.removesuffix("?"))
