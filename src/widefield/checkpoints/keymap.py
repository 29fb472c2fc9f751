"""Rules that rename the keys of a state dict, the same rules in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from widefield._core.checks import check

Value = TypeVar("Value")

_FIELD = re.compile(r"<(?P<name>\w+)(?: (?P<parity>even|odd))?(?:\+(?P<offset>\d+))?>")


@dataclass(frozen=True)
class Rule:
    """One renaming between two templates that share their fields.

    A field ``<s>`` stands for a whole number, ``<b even>`` and ``<b odd>`` for one of that parity, ``<i+1>`` for the
    number of field i plus 1, and ``<rest>`` for anything.

    Attributes:
        theirs: Template of the published name.
        ours: Template of our name.
    """

    theirs: str
    ours: str

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        return re.compile(_expression(self.theirs)), re.compile(_expression(self.ours))

    def rename(self, key: str, *, to_ours: bool) -> str | None:
        """Return the other name of `key`, or none if the rule does not fit it."""
        theirs, ours = self._patterns
        pattern, source, target = (theirs, self.theirs, self.ours) if to_ours else (ours, self.ours, self.theirs)
        match = pattern.fullmatch(key)
        if match is None:
            return None
        values: dict[str, str | int] = {}
        for field in _FIELD.finditer(source):
            text = match[field["name"]]
            if field["name"] == "rest":
                values["rest"] = text
                continue
            number = int(text) - int(field["offset"] or 0)
            if number < 0 or (field["parity"] and (number % 2 == 0) != (field["parity"] == "even")):
                return None
            values[field["name"]] = number
        return _FIELD.sub(lambda field: _filled(field, values), target)


def _expression(template: str) -> str:
    pieces: list[str] = []
    end = 0
    for field in _FIELD.finditer(template):
        pieces.append(re.escape(template[end : field.start()]))
        pieces.append(rf"(?P<{field['name']}>{'.+' if field['name'] == 'rest' else '[0-9]+'})")
        end = field.end()
    return "".join(pieces) + re.escape(template[end:])


def _filled(field: re.Match[str], values: Mapping[str, str | int]) -> str:
    value = values[field["name"]]
    return str(value + int(field["offset"] or 0)) if isinstance(value, int) else value


@dataclass(frozen=True, kw_only=True)
class Renaming:
    """What became of the keys of a state dict.

    Attributes:
        names: New name to old name, in the order of the state dict.
        unmapped: Old names that no rule fits.
        unused: Rules that fit no name.
    """

    names: dict[str, str]
    unmapped: tuple[str, ...]
    unused: tuple[Rule, ...]


def translate(keys: Iterable[str], rules: Iterable[Rule], *, to_ours: bool, source: str) -> Renaming:
    """Rename every key by the first rule that fits it, and say what was left over.

    Args:
        keys: Names of a state dict.
        rules: Tried in order.
        to_ours: From the published names to ours, or back.
        source: What the state dict is said to be, for the message.

    Raises:
        InputError: If two keys get one name.
    """
    rules = tuple(rules)
    names: dict[str, str] = {}
    unmapped: list[str] = []
    used: set[Rule] = set()
    for key in keys:
        found = next(((rule, name) for rule in rules if (name := rule.rename(key, to_ours=to_ours)) is not None), None)
        if found is None:
            unmapped.append(key)
            continue
        rule, other = found
        check(
            other not in names,
            f"a state dict of {source} with one tensor for each name",
            f"a second one for {other!r} ({key!r})",
            "check how the file was written",
        )
        names[other] = key
        used.add(rule)
    return Renaming(names=names, unmapped=tuple(unmapped), unused=tuple(rule for rule in rules if rule not in used))


def rename(state: Mapping[str, Value], rules: Iterable[Rule], *, to_ours: bool, source: str) -> dict[str, Value]:
    """Rename every key of a state dict by the first rule that fits it.

    Args:
        state: Names to tensors, or to anything.
        rules: Tried in order.
        to_ours: From the published names to ours, or back.
        source: What the state dict is said to be, for the message.

    Returns:
        The same values under their other names, in the same order.

    Raises:
        InputError: If no rule fits a key, or two keys get one name.
    """
    renaming = translate(state, rules, to_ours=to_ours, source=source)
    unmapped = renaming.unmapped
    check(
        not unmapped,
        f"a state dict of {source}",
        f"{len(unmapped)} keys that it does not have, the first {unmapped[0] if unmapped else ''!r}",
        "check which model the file belongs to",
    )
    return {new: state[old] for new, old in renaming.names.items()}
