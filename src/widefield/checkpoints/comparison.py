"""Whether a state dict is whole: its names and shapes against those of the network that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from widefield._core.checks import check, nearest
from widefield.checkpoints.layouts import Naming, in_layout

_MOST = 3


def check_whole(
    expected: Mapping[str, Sequence[int]], naming: Naming, state: Mapping[str, Tensor], source: str
) -> None:
    """Raise unless a state dict has every tensor of a network, in its shape, and no other.

    Args:
        expected: Our names to the shapes of the network.
        naming: The names of the state dict.
        state: The state dict.
        source: Where it comes from, for the message.

    Raises:
        InputError: With the names that are missing, too many, misspelt or of another shape.
    """
    theirs = in_layout(expected, naming.family, naming.layout)
    there = [*naming.names.values(), *naming.unmapped]
    known = set(there)
    missing = [key for key in theirs if key not in known]
    surplus = [key for key in there if key not in theirs]
    problems = _misspelt(missing, surplus, [key for key in state if key not in known])
    problems += _told("no {!r}", missing) + _told("{!r}, which it does not have", surplus)
    problems += _told(
        "{}",
        [
            f"{key!r} of shape {tuple(state[key].shape)} instead of {tuple(shape)}"
            for key, shape in theirs.items()
            if key in known and tuple(state[key].shape) != tuple(shape)
        ],
    )
    check(
        not problems,
        f"a complete state dict of {naming.title}",
        f"{source} with {'; '.join(problems)}",
        "copy or download it again, or check which model it belongs to",
    )


def _misspelt(missing: list[str], surplus: list[str], outside: list[str]) -> list[str]:
    """Name pairs of names that may be meant to be one, and take them off the lists."""
    told: list[str] = []
    if len(missing) > _MOST:
        return told
    for key in list(missing):
        close = nearest(key, [*surplus, *outside], 1)
        if close and _distance(key, close[0]) <= 1:
            told.append(f"{close[0]!r} where {key!r} is expected")
            missing.remove(key)
            if close[0] in surplus:
                surplus.remove(close[0])
    return told


def _distance(one: str, other: str) -> int:
    """How many parts differ between two dotted names."""
    ours, theirs = one.split("."), other.split(".")
    if len(ours) != len(theirs):
        return abs(len(ours) - len(theirs))
    return sum(a != b for a, b in zip(ours, theirs, strict=True))


def _told(text: str, items: list[str]) -> list[str]:
    more = f" (and {len(items) - _MOST} more)" if len(items) > _MOST else ""
    shown = [text.format(item) for item in items[:_MOST]]
    return [*shown[:-1], shown[-1] + more] if shown else []
