"""Images without labels: a file, a folder or an archive, read one by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from widefield._core.checks import check
from widefield.data.archive import open_archive
from widefield.data.errors import UndecodableImageError
from widefield.data.image import decode_image, is_image_name
from widefield.data.store import DiskStore, ImageStore

if TYPE_CHECKING:
    from PIL import Image


class Photos:
    """The images of a place, in the order of their names.

    Args:
        store: Where the files are.
        members: Path of each image in the store.
        fix: What to do about one that cannot be decoded, for the message.
    """

    def __init__(self, store: ImageStore, members: list[str], fix: str = "replace or delete it") -> None:
        self._store = store
        self._fix = fix
        self.members = members

    def __len__(self) -> int:
        return len(self.members)

    def load(self, index: int) -> Image.Image:
        """Read one image.

        Args:
            index: Its place in the list.

        Returns:
            The image, upright and in mode RGB.

        Raises:
            UndecodableImageError: If it cannot be decoded; the message names the file or archive member.
        """
        name = self.name(index)
        # A damaged archive raises its own kinds of errors while a member is read (bad checksum, bad deflate stream).
        try:
            content = self._store.read(self.members[index])
            return decode_image(content, name, self._fix)
        except UndecodableImageError:
            raise
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise UndecodableImageError.of(name, reason, self._fix) from error

    def name(self, index: int) -> str:
        """Return the path or archive member of an image, for messages and reports."""
        return f"{self._store.path.as_posix()}/{self.members[index]}"

    def signature(self, index: int) -> str:
        """Return size and checksum of an image, without reading all of it; nothing if it cannot be read."""
        try:
            return self._store.signature(self.members[index])
        except (OSError, ValueError):
            return ""


def open_photos(place: str | Path) -> Photos:
    """Find the images of a place, at any depth.

    Args:
        place: An image file, a folder, a .zip or an uncompressed .tar.

    Returns:
        Its images, sorted by path; nothing is decoded yet.

    Raises:
        InputError: If there is nothing there, no image in it, or an archive that cannot be read.
    """
    path = Path(place).expanduser()
    check(path.exists(), "images: a file, a folder, a .zip or a .tar", f"nothing at {str(place)!r}", "check the path")
    if path.is_file() and is_image_name(path.name):
        return Photos(DiskStore(path.parent), [path.name])
    store: ImageStore = DiskStore(path) if path.is_dir() else open_archive(path)
    members = store.tree.images("")
    check(bool(members), "at least one image", f"{str(place)!r} without any", "name a place that holds images")
    return Photos(store, members)
