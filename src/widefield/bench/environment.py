"""Where and with what a benchmark ran."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from widefield.__about__ import __version__


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Machine, versions and commit of a record."""

    device: str
    """Name of the processor or GPU."""
    device_type: str
    """"cpu" or "cuda"."""
    capability: str
    """Vector instructions that torch uses on a CPU ("AVX2"), compute capability of a GPU ("9.0")."""
    threads: int
    """Threads that torch uses on the CPU."""
    torch: str
    triton: str
    """Empty if it is not installed."""
    cuda: str
    """CUDA version that torch was built for; empty for none."""
    python: str
    widefield: str
    commit: str
    """Of the source that ran; empty outside a git checkout."""
    is_dirty: bool
    """Whether tracked files differed from that commit."""
    date: str
    """UTC, ISO 8601."""

    def is_comparable(self, other: Environment) -> bool:
        """Return whether times taken here and there may stand in one record: all is equal but the date."""
        return all(getattr(self, name) == getattr(other, name) for name in vars(self) if name != "date")


def environment(device_type: str = "cpu") -> Environment:
    """Describe this process.

    Args:
        device_type: The device that is timed, "cpu" or "cuda".
    """
    commit, is_dirty = _commit(Path(__file__).parent)
    return Environment(
        device=torch.cuda.get_device_name(0) if device_type == "cuda" else _cpu_name(),
        device_type=device_type,
        capability=_capability(device_type),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=torch.version.cuda or "",
        python=platform.python_version(),
        widefield=__version__,
        commit=commit,
        is_dirty=is_dirty,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _capability(device_type: str) -> str:
    if device_type == "cuda":
        return ".".join(map(str, torch.cuda.get_device_capability(0)))
    return torch.backends.cpu.get_cpu_capability()


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit(folder: Path) -> tuple[str, bool]:
    head = _git(folder, "rev-parse", "HEAD")
    return head.strip(), bool(head) and bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
