"""Images inside a .zip or an uncompressed .tar, read where they lie."""

from __future__ import annotations

import logging
import os
import posixpath
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING, NoReturn

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.data.image import check_size, is_hidden, is_image_name
from widefield.data.store import HEAD_BYTES, signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)

COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
ARCHIVE_SUFFIXES = (".zip", ".tar", *COMPRESSED_TAR_SUFFIXES)

_COMPRESSION_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def archive_stem(name: str) -> str | None:
    """Return `name` without the suffix of an archive, or None if it has none."""
    for suffix in ARCHIVE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


class MemberTree:
    """The images of an archive, by folder.

    Args:
        members: Plain paths of all files and (ending in a slash) folders of the archive.
    """

    def __init__(self, members: Iterable[str]) -> None:
        self._images: list[str] = []
        self._folders: dict[str, set[str]] = {"": set()}
        for member in members:
            parts = member.rstrip("/").split("/")
            if any(map(is_hidden, parts)):
                continue
            folders = parts if member.endswith("/") else parts[:-1]
            for depth, folder in enumerate(folders):
                self._folders.setdefault("/".join(folders[:depth]), set()).add(folder)
            if not member.endswith("/") and is_image_name(parts[-1]):
                self._images.append(member)
        self._images.sort()

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix`, sorted."""
        return sorted(self._folders.get(prefix, ()))

    def images(self, prefix: str) -> list[str]:
        """Return the members below `prefix` that are images, sorted."""
        if not prefix:
            return list(self._images)
        return [member for member in self._images if member.startswith(f"{prefix}/")]


class ZipStore:
    """The images of a .zip; each process opens its own handle when it first reads.

    Args:
        path: The file.

    Raises:
        InputError: If it is no zip archive, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: tuple[int, zipfile.ZipFile] | None = None
        names = self._archive().namelist()
        self._names = {_plain(name): name for name in names}
        _tell_of_odd_names(path, names, len(self._names))
        self.tree = MemberTree(self._names)

    def read(self, member: str) -> bytes:
        """Return the bytes of one member.

        Raises:
            ValueError: If it claims a size that no image has.
        """
        archive = self._archive()
        check_size(archive.getinfo(self._names[member]).file_size)
        return archive.read(self._names[member])

    def signature(self, member: str) -> str:
        """Return size and checksum of one member, as the archive states them."""
        info = self._archive().getinfo(self._names[member])
        return f"{info.file_size}:{info.CRC:08x}"

    def _archive(self) -> zipfile.ZipFile:
        # A handle inherited through fork shares its file position with the parent: a child opens its own.
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), _open_zip(self.path))
        return self._handle[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_handle": None}


class TarStore:
    """The images of an uncompressed .tar, found by their offsets.

    Args:
        path: The file.

    Raises:
        InputError: If it is no tar archive, is compressed, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._extents = tar_extents(path)
        self.tree = MemberTree(self._extents)

    def read(self, member: str) -> bytes:
        """Return the bytes of one member.

        Raises:
            ValueError: If it claims a size that no image has.
        """
        check_size(self._extents[member][1])
        return read_extent(self.path, *self._extents[member])

    def signature(self, member: str) -> str:
        """Return the size of one member and a checksum of its first bytes."""
        offset, size = self._extents[member]
        return signature(size, read_extent(self.path, offset, min(size, HEAD_BYTES)))


def open_archive(path: Path) -> ZipStore | TarStore:
    """Open a .zip or .tar.

    Raises:
        InputError: If it is neither, compressed as a whole, or truncated.
    """
    # Opening a named pipe would wait for ever.
    check(
        path.is_file(),
        "a folder, a .zip or a .tar of images",
        f"{str(path)!r}, which is no ordinary file",
        "give the folder or archive that holds the images",
    )
    if path.suffix.lower() == ".zip" or (path.suffix.lower() != ".tar" and zipfile.is_zipfile(path)):
        return ZipStore(path)
    check(
        archive_stem(path.name) is not None,
        "a folder, a .zip or a .tar of images",
        f"the file {str(path)!r}",
        "give the folder or archive that holds the images",
    )
    return TarStore(path)


def tar_extents(path: Path) -> dict[str, tuple[int, int]]:
    """Find where each file of a tar lies.

    Args:
        path: An uncompressed tar.

    Returns:
        Offset and size in bytes of every regular file by its name, links resolved, and (0, 0) for folders, whose names
        end in a slash; in the order of the archive.

    Raises:
        InputError: If it is no tar, is compressed, is truncated, or has members that are stored with holes.
    """
    with path.open("rb") as file:
        magic = file.read(8)
    check(
        not magic.startswith(_COMPRESSION_MAGIC),
        "an uncompressed tar, whose members can be read in any order",
        f"the compressed {str(path)!r}",
        "unpack it, or pack the images as a .zip",
    )
    extents: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    names: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = _plain(member.name)
                names.append(member.name)
                check(
                    not member.issparse(),
                    "a tar whose members lie in it as they are",
                    f"{str(path)!r} with the sparse member {member.name!r}",
                    "pack it again without --sparse",
                )
                if member.isdir():
                    extents[f"{name}/"] = (0, 0)
                elif member.islnk():
                    links[name] = _plain(member.linkname)
                elif member.issym():
                    links[name] = _plain(posixpath.join(posixpath.dirname(name), member.linkname))
                elif member.isfile():
                    extents[name] = (member.offset_data, member.size)
            end = archive.offset
    except tarfile.ReadError as error:
        _refuse(path, "tar", truncated="unexpected end" in str(error), error=error)
    except (tarfile.TarError, ValueError, OverflowError, EOFError, LookupError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        # What a damaged header makes of its numbers and texts decides which of them tarfile raises.
        _refuse(path, "tar", truncated=True, error=error)
    # tarfile ends without a word at a missing or broken header; a whole archive ends in a block of zeros.
    if read_extent(path, end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        _refuse(path, "tar", truncated=True, error=None)
    size_bytes = path.stat().st_size
    if any(offset + length > size_bytes for offset, length in extents.values()):
        _refuse(path, "tar", truncated=True, error=None)
    _tell_of_odd_names(path, names, len(set(names)))
    for name, target in links.items():
        if target in extents:
            extents[name] = extents[target]
        else:
            _log.warning("%s: the link %s leads to nothing in the archive and is left out", path, name)
    return extents


def read_extent(path: Path, offset: int, size_bytes: int) -> bytes:
    """Return `size_bytes` bytes of a file from `offset`; no handle is kept, so it is safe in any process."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size_bytes)


def _plain(name: str) -> str:
    """Return a member's path without "./" and the like, keeping the slash at the end of a folder."""
    return posixpath.normpath(name).lstrip("/") + ("/" if name.endswith("/") else "")


def _tell_of_odd_names(path: Path, names: Sequence[str], different: int) -> None:
    """Warn of members that lead out of the archive and of names that it has more than once."""
    # Nothing is ever unpacked: an absolute path is read as one from the top, what leads out of the archive is left out.
    outside = [name for name in names if _plain(name).startswith("../")]
    if outside:
        _log.warning("%s: %d members lead out of it and are left out, such as %r", path, len(outside), outside[0])
    if different < len(names):
        _log.warning("%s: %d members have the name of another; the last of each is read", path, len(names) - different)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, struct.error, ValueError, LookupError, EOFError, NotImplementedError) as error:
        with path.open("rb") as file:
            _refuse(path, "zip", truncated=file.read(4) == b"PK\x03\x04", error=error)


def _refuse(path: Path, kind: str, *, truncated: bool, error: Exception | None) -> NoReturn:
    if truncated:
        raise InputError(
            f"a complete {kind} archive", f"{str(path)!r}, which is truncated or damaged", "copy or download it again"
        ) from error
    raise InputError(
        f"a {kind} archive", f"{str(path)!r}, which is none", "give the archive or folder that holds the images"
    ) from error
