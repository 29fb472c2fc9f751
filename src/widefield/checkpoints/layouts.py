"""Under which names a state dict lies: the authors', mmpretrain's, those of a backbone in a larger model, or ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from widefield._core.checks import check
from widefield.checkpoints import replknet, slak, unireplknet
from widefield.checkpoints.keymap import Renaming, Rule, translate

Value = TypeVar("Value")

Family = Literal["replknet", "slak", "unireplknet"]
Layout = Literal["widefield", "official", "mmpretrain", "backbone"]
LAYOUTS: tuple[Layout, ...] = ("widefield", "official", "mmpretrain", "backbone")

_PUBLISHED = {"replknet": replknet, "slak": slak, "unireplknet": unireplknet}
_TITLES = {"replknet": "RepLKNet", "slak": "SLaK", "unireplknet": "UniRepLKNet"}

_PREFIX = "backbone."

# Between a layout's names and the authors'.
_LAYOUT_RULES: dict[Layout, tuple[Rule, ...]] = {
    "official": (Rule("<rest>", "<rest>"),),
    "mmpretrain": (
        Rule("backbone.stages.3.norm.<rest>", "norm.<rest>"),
        Rule("head.fc.<rest>", "head.<rest>"),
        Rule("backbone.<rest>", "<rest>"),
    ),
    "backbone": (Rule("backbone.<rest>", "<rest>"),),
}


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The names of a recognised state dict."""

    family: Family
    """Which networks it belongs to."""
    layout: Layout
    """Whose names it has."""
    names: Mapping[str, str]
    """Our name to the name in the state dict, in the order of the state dict."""
    unmapped: tuple[str, ...]
    """Names for which there is no rule."""
    unused: tuple[Rule, ...]
    """Rules of the family that no name fits, for instance those for branches in a merged state dict."""
    left_out: Mapping[str, int]
    """First part of the names that are not the network's to how many there are ("decode_head": 74)."""

    @property
    def title(self) -> str:
        """What to call it in a message."""
        where = {
            "widefield": "our {}",
            "official": "the published {}",
            "mmpretrain": "mmpretrain's {}",
            "backbone": "the {} backbone of a larger model",
        }
        return where[self.layout].format(_TITLES[self.family])


def name_layout(keys: Iterable[str], source: str = "the checkpoint") -> Naming:
    """Find the family and the layout of a state dict from its names.

    Args:
        keys: Names of the state dict.
        source: Where it comes from, for the message.

    Raises:
        InputError: If it belongs to no family, or two names of it mean the same.
    """
    every = list(keys)
    is_nested = any(key.startswith(_PREFIX) for key in every)
    inner = [key.removeprefix(_PREFIX) for key in every if key.startswith(_PREFIX)] if is_nested else every
    family, is_ours = _family(inner, source)
    layout: Layout = "official"
    if is_ours:
        layout = "widefield"
    elif is_nested:
        layout = "mmpretrain" if family == "replknet" and _has_final_norm_in_last_stage(inner) else "backbone"
    outside = [key for key in every if is_nested and not key.startswith(_PREFIX)]
    if layout == "mmpretrain":
        outside = [key for key in outside if not key.startswith("head.fc.")]
    left_out = Counter(key.partition(".")[0] for key in outside)
    own = [key for key in every if key not in set(outside)]

    if layout == "widefield":
        names, unmapped, unused = {key.removeprefix(_PREFIX): key for key in own}, (), ()
    else:
        theirs = translate(own, _LAYOUT_RULES[layout], to_ours=True, source=source)
        ours = _translate_to_ours(theirs.names, family)
        names = {name: theirs.names[official] for name, official in ours.names.items()}
        unmapped = theirs.unmapped + tuple(theirs.names[official] for official in ours.unmapped)
        unused = ours.unused
    return Naming(family=family, layout=layout, names=names, unmapped=unmapped, unused=unused, left_out=dict(left_out))


def in_layout(state: Mapping[str, Value], family: Family, layout: Layout) -> dict[str, Value]:
    """Give a state dict of ours the names of a layout.

    Args:
        state: Our names to tensors, or to anything.
        family: Whose it is.
        layout: Whose names to give.

    Returns:
        The same values under their other names, in the same order.

    Raises:
        InputError: If a name has no counterpart there.
    """
    if layout == "widefield":
        return dict(state)
    check(
        layout != "mmpretrain" or family == "replknet",
        "a RepLKNet, the one of these families that mmpretrain has",
        f"a {_TITLES[family]}",
        "write it with the authors' names, as official",
    )
    official = _PUBLISHED[family].to_published(state)
    named = translate(official, _LAYOUT_RULES[layout], to_ours=False, source=f"our {_TITLES[family]}")
    return {new: official[old] for new, old in named.names.items()}


def _translate_to_ours(keys: Iterable[str], family: Family) -> Renaming:
    source = f"the published {_TITLES[family]}"
    return translate(keys, _PUBLISHED[family].RULES, to_ours=True, source=source)


def _family(keys: list[str], source: str) -> tuple[Family, bool]:
    # UniRepLKNet before SLaK, whose marks it has too.
    ours: dict[Family, bool] = {
        "replknet": any(".blocks.0.conv1.conv." in key for key in keys),
        "unireplknet": any(".squeeze_excite." in key or ".response_norm." in key for key in keys),
        "slak": any(".fc1." in key for key in keys) and any(".large_kernel." in key for key in keys),
    }
    named = dict.fromkeys(keys)
    theirs: dict[Family, bool] = {family: _PUBLISHED[family].is_published(named) for family in ours}
    is_ours = any(ours.values())
    found: list[Family] = [family for family in ours if (ours if is_ours else theirs)[family]]
    check(
        bool(found),
        "weights of a RepLKNet, SLaK or UniRepLKNet",
        f"{source} with other names, such as {', '.join(map(repr, keys[:2]))}",
        "check which model they belong to",
    )
    return found[0], is_ours


def _has_final_norm_in_last_stage(keys: list[str]) -> bool:
    # The published XL backbones have such a norm in every stage, mmpretrain's classifiers in the last alone.
    stages = {key.split(".")[1] for key in keys if key.startswith("stages.") and key.split(".")[2] == "norm"}
    return stages == {"3"}
