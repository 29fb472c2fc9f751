"""The 16 categories of cue-conflict images, and which outputs of a classifier belong to each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

from widefield._core.checks import check, check_name
from widefield._core.errors import InputError

SIXTEEN_CLASS_IMAGENET: Mapping[str, tuple[int, ...]] = {
    "airplane": (404,),
    "bear": (294, 295, 296, 297),
    "bicycle": (444, 671),
    "bird": tuple(
        chain(
            (8,),
            range(10, 17),
            range(18, 21),
            range(22, 25),
            range(80, 84),
            range(87, 97),
            range(98, 101),
            range(127, 134),
            range(135, 146),
        )
    ),
    "boat": (472, 554, 625, 814, 914),
    "bottle": (440, 720, 737, 898, 899, 901, 907),
    "car": (436, 511, 817),
    "cat": (281, 282, 283, 284, 285, 286),
    "chair": (423, 559, 765, 857),
    "clock": (409, 530, 892),
    "dog": tuple(
        chain(
            range(152, 192),
            range(193, 204),
            range(205, 227),
            range(228, 242),
            range(243, 251),
            range(252, 258),
            (259,),
            range(261, 264),
            range(265, 269),
        )
    ),
    "elephant": (385, 386),
    "keyboard": (508, 878),
    "knife": (499,),
    "oven": (766,),
    "truck": (555, 569, 656, 675, 717, 734, 864, 867),
}
"""16-class-ImageNet: category to the ImageNet-1K classes below it in WordNet, 207 in all.

Geirhos et al., Generalisation in humans and deep neural networks, NeurIPS 2018 (arXiv 1808.08750); the lists are those
of the authors' repositories rgeirhos/texture-vs-shape and bethgelab/model-vs-human. Their authors left out by hand what
is no clear case (some dogs and birds), so a category is not all that WordNet has below it.
"""

CATEGORIES = tuple(SIXTEEN_CLASS_IMAGENET)
"""Their names, in alphabetical order."""

_FIX = 'write {"to_16class": {"dog": ["dalmatian", ...], ...}}, with names of classes or places of outputs'


@dataclass(frozen=True, kw_only=True)
class CategoryMapping:
    """Which outputs of a classifier belong to each category."""

    num_classes: int
    """Outputs of the classifier."""
    members: Mapping[str, tuple[int, ...]]
    """Category to its outputs, in alphabetical order; categories without any are left out."""

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories that the classifier can choose."""
        return tuple(self.members)


def imagenet_mapping() -> CategoryMapping:
    """Return 16-class-ImageNet, for a classifier with the 1000 outputs of ImageNet-1K in their usual order."""
    return CategoryMapping(num_classes=1000, members=SIXTEEN_CLASS_IMAGENET)


def read_mapping(path: str | Path, num_classes: int, classes: Sequence[str] | None = None) -> CategoryMapping:
    """Read which classes of a classifier belong to which of the 16 categories.

    The file is JSON: ``{"to_16class": {category: [class, ...]}, "classes": [name, ...]}``. A class is a name or the
    place of its output, from 0; names are looked up in `classes` or, where these are not known, in those of the file.
    Classes that no category has do not count, and neither do categories without a class.

    Args:
        path: The file.
        num_classes: Outputs of the classifier.
        classes: Name of each output, where the classifier says it.

    Returns:
        The mapping.

    Raises:
        InputError: If the file cannot be read, a category is none of the 16, or a class is unknown or in two of them.
    """
    content = _read(path)
    names = list(classes) if classes is not None else cast("list[str]", content.get("classes", []))
    check(
        len(names) in (0, num_classes),
        f"{num_classes} class names for {num_classes} outputs",
        f"{len(names)} in {str(path)!r}",
        "name the file that belongs to this classifier",
    )
    members: dict[str, tuple[int, ...]] = {}
    owner: dict[int, str] = {}
    for category, listed in sorted(content["to_16class"].items()):
        check_name(category, CATEGORIES, "category of cue-conflict images")
        check(isinstance(listed, list), f"a list of classes for {category!r}", repr(listed), _FIX)
        places = tuple(_place(entry, names, num_classes) for entry in listed)
        for entry, place in zip(listed, places, strict=True):
            check(
                owner.setdefault(place, category) == category and places.count(place) == 1,
                "each class once",
                f"{entry!r} twice, in {owner[place]!r} and {category!r}",
                "keep one of the two",
            )
        if places:
            members[category] = places
    check(len(members) >= 2, "classes of at least two categories", f"{len(members)} in {str(path)!r}", _FIX)
    return CategoryMapping(num_classes=num_classes, members=members)


def _read(path: str | Path) -> dict[str, Any]:
    expected = "a JSON file that maps classes to categories"
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(expected, f"{str(path)!r}, which cannot be read ({error})", _FIX) from error
    is_mapping = isinstance(content, dict) and isinstance(content.get("to_16class"), dict)
    check(is_mapping, expected, f"{str(path)!r}, which holds something else", _FIX)
    names = content.get("classes", [])
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    check(is_list, "a list of class names under 'classes'", f"something else in {str(path)!r}", _FIX)
    return content


def _place(entry: object, names: Sequence[str], num_classes: int) -> int:
    if isinstance(entry, int) and not isinstance(entry, bool):
        check(0 <= entry < num_classes, f"outputs from 0 to {num_classes - 1}", str(entry), "correct the mapping")
        return entry
    check(isinstance(entry, str), "the name of a class, or the place of its output", repr(entry), _FIX)
    check(
        bool(names), "class names under 'classes'", f"none, to find {entry!r} in", "add them, in order of the outputs"
    )
    check_name(cast("str", entry), names, "class")
    return names.index(cast("str", entry))
