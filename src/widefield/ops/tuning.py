"""The table of costs that the choice is made by: measured here by ``widefield tune``, else the shipped one."""

from __future__ import annotations

import logging
import platform
from functools import lru_cache
from pathlib import Path

import torch

from widefield._core.cache import cache_folder, slug
from widefield._core.files import write_text_atomically
from widefield.ops.depthwise_conv.costs import CostTable, read_costs, shipped_costs

_logger = logging.getLogger(__name__)


def tuned_path() -> Path:
    """Return where this machine's table lies or would lie: one for each processor, capability and torch version."""
    parts = (processor_name(), torch.backends.cpu.get_cpu_capability(), f"torch-{torch.__version__}")
    return cache_folder() / f"costs-{'-'.join(slug(part) for part in parts)}.json"


def processor_name() -> str:
    """Return the processor's name as Linux gives it, elsewhere what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def costs(capability: str) -> CostTable:
    """Return the table for a CPU capability: the tuned one if there is one for this processor."""
    path = tuned_path()
    return (
        _tuned(path, path.stat().st_mtime_ns) or shipped_costs(capability)
        if path.is_file()
        else shipped_costs(capability)
    )


@lru_cache(maxsize=4)
def _tuned(path: Path, changed_ns: int) -> CostTable | None:
    try:
        return read_costs(path)
    except (OSError, ValueError) as error:
        _logger.warning("%s cannot be read (%s): the shipped costs are used; run widefield tune again", path, error)
        return None


def keep(table: CostTable) -> Path:
    """Write this machine's table and return its path. It is used from the next process on."""
    path = tuned_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, table.as_json())
    return path
