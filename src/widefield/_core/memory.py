"""How the C library keeps memory between the steps of a training run on a CPU."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


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
