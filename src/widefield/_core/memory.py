"""The memory of this machine, and how the C library keeps it between the steps of a training run on a CPU."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNKNOWN_BYTES = 1 << 44


def memory_bytes() -> int:
    """Return how much memory this process can have at most: the machine's, or less where a container has a limit."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        whole = _UNKNOWN_BYTES
    limits = [Path(place).read_text().strip() for place in _LIMITS if os.access(place, os.R_OK)]
    return min([whole, *(int(limit) for limit in limits if limit.isdecimal())])


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, so that the tensors of the next step find memory that is already mapped.

    By default glibc hands every large block back to the kernel when it is freed, and each step of a training run pays
    for mapping and clearing the same pages again; the peak is the same either way.

    Returns:
        Whether the C library took the setting: only glibc has it.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, _NEVER))
