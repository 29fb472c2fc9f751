from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("killed_run.py")


def kill(folder: Path, kills: int, ranks: int, seed: int) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(folder), *map(str, (kills, ranks, seed))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("kills", "ranks"),
    [
        (3, 1),
        (2, 2),
        pytest.param(20, 1, marks=pytest.mark.slow),
        pytest.param(20, 2, marks=pytest.mark.slow),
    ],
)
def test_weights_average_masks_and_curves_are_those_of_a_run_never_killed(
    tmp_path: Path, kills: int, ranks: int
) -> None:
    found = kill(tmp_path, kills, ranks, seed=7)
    assert found["kills"] == kills, found
    assert found["differences"] == []
