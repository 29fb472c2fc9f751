"""Arithmetic in the types that were asked for, also where autocast is on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def as_written(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which autocast does not lower what matrix products and convolutions read."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
