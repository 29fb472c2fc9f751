"""The error for an image that cannot be read."""

from __future__ import annotations

from widefield._core.errors import InputError


class UndecodableImageError(InputError):
    """An image file or archive member cannot be decoded; the message names it."""

    @classmethod
    def of(cls, name: str, reason: str) -> UndecodableImageError:
        """Return the error for one image.

        Args:
            name: Path of the file, or of the archive followed by the member.
            reason: What the decoder said.
        """
        return cls(
            "an image that can be decoded",
            f"{name!r} ({reason.rstrip('.')})",
            "replace or delete it, or leave such images out with --data.on-error skip",
        )
