"""Threads for each test process; without a GPU, Triton's kernels run in its interpreter.

Triton and OpenMP read their settings from the environment when they are imported.
"""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))))

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What ``-n auto`` means here: each process holds PyTorch and its networks, about 2 GB."""
    return min(4, os.cpu_count() or 1)
