"""The error for an image that cannot be read."""

from __future__ import annotations

from widefield._core.errors import InputError

IN_A_DATA_SET = "replace or delete it, or leave such images out with --data.on-error skip"
"""What to do about an image of a labelled data set."""


class UndecodableImageError(InputError):
    """An image file or archive member cannot be decoded; the message names it."""

    @classmethod
    def of(cls, name: str, reason: str, fix: str = IN_A_DATA_SET) -> UndecodableImageError:
        """Return the error for one image.

        Args:
            name: Path of the file, or of the archive followed by the member.
            reason: What the decoder said.
            fix: What to do about it.
        """
        return cls(
            "an image that can be decoded",
            f"{name!r} ({reason.rstrip('.')})",
            fix,
        )
