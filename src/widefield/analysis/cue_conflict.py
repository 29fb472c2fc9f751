"""Images whose shape and texture belong to different categories, and images that have a shape alone."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from widefield._core.checks import check, check_name
from widefield.analysis.categories import CATEGORIES
from widefield.data import Photos, open_photos

_CUE_CONFLICT = re.compile(r"(?P<shape>[a-z]+)\d+-(?P<texture>[a-z]+)\d+")
_SHAPE_ALONE = re.compile(r"(?P<shape>[a-z]+)\d+")


@dataclass(frozen=True, kw_only=True)
class Stimulus:
    """One image and what it shows."""

    index: int
    """Its place in the photos."""
    shape: str
    """Category of its shape."""
    texture: str | None = None
    """Category of its texture, which is another; none of an edge drawing or a silhouette."""


@dataclass(frozen=True, kw_only=True)
class Stimuli:
    """Images with the categories that they show."""

    photos: Photos
    """Where the images are."""
    items: tuple[Stimulus, ...]
    """The images that count, by name."""
    equal_pairs: int = 0
    """Images left out because shape and texture are of the same category: there is no conflict to decide."""
    uncovered: int = 0
    """Images left out because a classifier has no class for their shape or their texture."""

    def __len__(self) -> int:
        return len(self.items)

    def load(self, place: int) -> Image.Image:
        """Read one image that counts, in mode RGB."""
        return self.photos.load(self.items[place].index)

    def within(self, categories: Collection[str]) -> Stimuli:
        """Leave out, and count, the images with a cue that is none of the categories.

        Args:
            categories: What a classifier can answer.

        Returns:
            The images that it could get right by either cue.

        Raises:
            InputError: If there are none.
        """
        kept = tuple(item for item in self.items if {item.shape, item.texture or item.shape} <= set(categories))
        check(
            bool(kept),
            f"images of the categories that the classifier knows ({', '.join(sorted(categories))})",
            f"{len(self)} of others",
            "use other images, or map more classes",
        )
        return replace(self, items=kept, uncovered=self.uncovered + len(self) - len(kept))


def open_cue_conflict(place: str | Path) -> Stimuli:
    """Find cue-conflict images: the shape of one category with the texture of another.

    The file name alone says what an image shows, as in the published set (rgeirhos/texture-vs-shape):
    ``<shape><number>-<texture><number>.png``, in any folder.

    Args:
        place: A folder, a .zip or a .tar.

    Returns:
        The images with a conflict; those whose two categories are the same are left out and counted.

    Raises:
        InputError: If there are no such images, or a name says something else.
    """
    photos, named = _named(place, _CUE_CONFLICT, "<shape><number>-<texture><number>, such as cat7-elephant1.png")
    items = tuple(item for item in named if item.shape != item.texture)
    check(
        bool(items),
        "images with a cue conflict",
        f"{len(named)} without one in {str(place)!r}",
        "use images whose shape and texture differ",
    )
    return Stimuli(photos=photos, items=items, equal_pairs=len(named) - len(items))


def open_shapes(place: str | Path) -> Stimuli:
    """Find images with a shape and no texture, edge drawings or silhouettes: ``<shape><number>.png``, in any folder.

    Args:
        place: A folder, a .zip or a .tar.

    Returns:
        The images.

    Raises:
        InputError: If there are no such images, or a name says something else.
    """
    photos, named = _named(place, _SHAPE_ALONE, "<shape><number>, such as cat7.png")
    return Stimuli(photos=photos, items=named)


def _named(place: str | Path, pattern: re.Pattern[str], form: str) -> tuple[Photos, tuple[Stimulus, ...]]:
    photos = open_photos(place)
    items: list[Stimulus] = []
    for index, member in enumerate(photos.members):
        name = Path(member).stem
        match = pattern.fullmatch(name)
        check(match is not None, f"images named {form}", repr(photos.name(index)), "rename it, or take it out")
        cues = match.groupdict() if match is not None else {}
        for category in cues.values():
            check_name(category, CATEGORIES, f"category in {photos.name(index)!r}")
        items.append(Stimulus(index=index, **cues))
    return photos, tuple(items)
