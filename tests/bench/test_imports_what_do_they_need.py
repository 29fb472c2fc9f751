from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CODE = """
import sys

for name in ("rich", "tyro", "matplotlib", "accelerate", "sklearn", "scipy", "tensorboard"):
    sys.modules[name] = None  # as if it were not installed

import widefield.ops, widefield.nn, widefield.models, widefield.bench
from widefield.bench import cases, entries, environment, floors, gate, model, operands, operator, race, records
from widefield.bench import summary, sweep, timers, variants, plots, report
"""


def test_benchmarks_need_torch_and_timm_alone() -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
