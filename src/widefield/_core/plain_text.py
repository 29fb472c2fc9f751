"""Text that others gave (names of classes, files, models), made safe to be shown: nothing in it acts."""

from __future__ import annotations

import unicodedata

# Control and format characters, halves of surrogate pairs (bytes of a file name that are no UTF-8), line separators.
_ACTING = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
# Between letters of some scripts, and within emoji.
_JOINERS = "\u200c\u200d"


def visible(text: object, keep: str = "") -> str:
    r"""Return text with every character that acts on a terminal or on the direction of writing as an escape, as \x1b.

    Args:
        text: Anything; its `str` is taken.
        keep: Characters to leave as they are, such as line ends in text of ours.
    """
    return "".join(
        character.encode("unicode_escape").decode() if _acts(character) and character not in keep else character
        for character in str(text)
    )


def figure_text(text: object, keep: str = "") -> str:
    """Return text for matplotlib, which would take what stands between dollar signs for mathematics.

    Args:
        text: Anything; its `str` is taken.
        keep: As in `visible`.
    """
    return visible(text, keep).replace("$", r"\$")


def _acts(character: str) -> bool:
    # Almost all text is printable, spaces of other widths aside.
    return not character.isprintable() and unicodedata.category(character) in _ACTING and character not in _JOINERS
