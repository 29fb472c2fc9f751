"""Which parts of a network are folded in a state dict that is merged in whole or in part."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

from torch import nn

from widefield.reparam import Reparameterizable, fold


def units_to_fold(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Find those units of a branched network whose folding brings its state dict's names closest to given ones.

    Published merged networks are merged to different depths: RepLKNet's files keep the norms outside of the large
    kernels, UniRepLKNet's keep none.

    Args:
        model: The network in evaluation mode; it is left as it is.
        names: Names of the state dict that it shall have.

    Returns:
        Names of the units, none of them in another one.
    """
    wanted = set(names)
    return [
        name
        for unit_name, unit in _outermost(model, "")
        for name in _closest(unit_name, unit, _under(wanted, unit_name))[1]
    ]


def _outermost(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Units in a module that are in no other one of it."""
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if isinstance(child, Reparameterizable):
            yield path, child
        else:
            yield from _outermost(child, path)


def _under(names: set[str], prefix: str) -> set[str]:
    return {name for name in names if name.startswith(f"{prefix}.")}


def _closest(name: str, unit: nn.Module, wanted: set[str]) -> tuple[int, list[str]]:
    """Return by how many names the best folding of a unit misses, and which units it folds."""
    own = {f"{name}.{key}" for key in unit.state_dict()}
    if own == wanted:
        return 0, []
    folded = copy.deepcopy(unit)
    fold(folded)
    whole = len({f"{name}.{key}" for key in folded.state_dict()} ^ wanted)
    if whole == 0:
        return 0, [name]
    misses, chosen = 0, list[str]()
    for part_name, part in _outermost(unit, name):
        own -= (inside := _under(own, part_name))
        part_wanted = _under(wanted, part_name)
        wanted = wanted - part_wanted
        part_misses, part_chosen = _closest(part_name, part, part_wanted) if inside != part_wanted else (0, [])
        misses += part_misses
        chosen += part_chosen
    misses += len(own ^ wanted)
    return (whole, [name]) if whole < misses else (misses, chosen)
