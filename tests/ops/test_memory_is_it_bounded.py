"""Peak memory in a fresh process, where the high-water mark belongs to one call."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
from pathlib import Path
from widefield.ops.depthwise_conv import maps
torch.set_num_threads(2)

def status(name):
    line = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name))
    return int(line.split()[1]) / 1024

def call(batch, channels, size):
    x = torch.zeros(batch, channels, size, size)
    weight = torch.zeros(channels, 1, 31, 31)
    geometry = ((1, 1), (15, 15), (1, 1), sys.argv[1])
    run = {
        "forward": lambda: maps.forward(x, weight, None, *geometry),
        "grad_input": lambda: maps.grad_input(x, weight, x.shape, *geometry),
        "grad_weight": lambda: maps.grad_weight(x, x, (31, 31), *geometry),
    }[sys.argv[2]]
    before = status("VmRSS")
    y = run()
    return status("VmHWM") - before - y.numel() * 4 / 2**20, 2 * x.numel() * 4 / 2**20

call(1, 64, 64)
extra, tensors = call(4, 256, 64)
print(extra / tensors)
"""


@pytest.mark.parametrize("backend", ["fft", "dft", ""])
@pytest.mark.parametrize("map_", ["forward", "grad_input", "grad_weight"])
def test_a_map_takes_at_most_three_times_input_plus_output(backend: str, map_: str) -> None:
    command = [sys.executable, "-W", "error", "-c", SCRIPT, backend, map_]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 3
