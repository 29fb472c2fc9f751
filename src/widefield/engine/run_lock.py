"""One process writes into a run folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from widefield._core.errors import InputError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Name of the locked file in a run folder; it says who holds the lock, and one that a kill has left holds nothing."""

_held: set[int] = set()


def lock_run(folder: Path, stack: ExitStack) -> None:
    """Keep every other process from writing a run folder, until `stack` is left or this process ends.

    The lock is the kernel's (`flock`) on the file `.lock` of the folder; forked children do not share it. Where there
    is none (Windows, some network file systems) the run goes on without.

    Args:
        folder: The run folder, which exists.
        stack: Takes the release.

    Raises:
        InputError: If another process holds it; its number and machine are named.
        OSError: If the folder cannot be written.
    """
    if sys.platform == "win32":
        return
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            raise InputError(
                "a run folder that no other process is writing",
                f"{folder}, which {holder or 'another process'} is writing",
                "wait until it has ended, or choose another folder",
            ) from error
        except OSError as error:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            logger.warning("%s cannot be locked (%s): start no second process on this run", folder, error.strerror)
            return
        if _is_at(descriptor, path):
            break
        # Its holder has taken the file away between our opening and locking it.
        os.close(descriptor)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    _held.add(descriptor)
    stack.callback(_release, descriptor, path)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release(descriptor: int, path: Path) -> None:
    if descriptor not in _held:
        return
    # Before the lock is given up: who opens the file until then finds it gone once it has the lock.
    if _is_at(descriptor, path):
        path.unlink()
    _held.remove(descriptor)
    os.close(descriptor)


def _leave_to_the_parent() -> None:
    # A loader's worker that outlives a killed run for some seconds must not hold its lock.
    while _held:
        os.close(_held.pop())


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_leave_to_the_parent)
