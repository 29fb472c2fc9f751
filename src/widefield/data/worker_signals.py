"""Signals and loader processes: an order to a run is answered by the run, and a death is noticed where batches come."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_ORDERS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
_LOOK_EVERY_S = 1.0


@contextmanager
def orders_held_back() -> Iterator[None]:
    """Keep orders waiting in this thread; a process that is started meanwhile keeps them waiting for all its life.

    Held back before it starts, no order can fall between the start of a loader process and `outlive_orders`.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ORDERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_orders(owner: int, worker: int) -> None:
    """Let this loader process go on at orders that reach its whole group, and end with the process that started it.

    A scheduler, a service manager and Ctrl-C tell all processes of a run. The run still wants batches for the step at
    hand, so the loader processes end when it has no more use for them: SIGTERM from `owner` ends them at once, and its
    death within a second.

    Args:
        owner: Id of the process that reads the batches.
        worker: Number of this process, which torch passes; not used.
    """
    for number in _ORDERS:
        if not hasattr(signal, "sigtimedwait"):
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(owner, os.getppid()), daemon=True, name="orders").start()


def _end_with(owner: int, parent: int) -> None:
    # A worker that has begun after the death of its owner has another parent already, unless a server forked it.
    while os.getppid() == parent and _is_alive(owner):
        if hasattr(signal, "sigtimedwait"):
            order = signal.sigtimedwait(_ORDERS, _LOOK_EVERY_S)
            if order is not None and order.si_signo == signal.SIGTERM and order.si_pid == owner:
                break
        else:
            time.sleep(_LOOK_EVERY_S)
    # Not through the interpreter, which would wait for queues that nobody reads.
    os._exit(0)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


_looking = threading.local()


@contextmanager
def deaths_told() -> Iterator[None]:
    """Let torch's loader raise of killed loader processes within this block; outside, it would raise anywhere.

    torch raises from a handler of SIGCHLD, in the middle of whatever the main thread does: a step, a save.
    """
    handler = _quiet_handler()
    _looking.now = True
    try:
        if handler is not None:
            handler(signal.SIGCHLD, None)
        yield
    finally:
        _looking.now = False


def _quiet_handler() -> Callable[[int, FrameType | None], None] | None:
    """Put a handler of ours around torch's, once, and return it; None where there is none."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return None
    installed = signal.getsignal(signal.SIGCHLD)
    module = getattr(installed, "__module__", "")
    if module == __name__:
        return installed  # pyright: ignore[reportReturnType]
    if not callable(installed) or not module.startswith("torch.utils.data"):
        return None

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            installed(number, frame)
        except RuntimeError:
            if getattr(_looking, "now", False):
                raise

    signal.signal(signal.SIGCHLD, handler)
    return handler
