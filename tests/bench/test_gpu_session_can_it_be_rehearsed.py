from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from widefield.bench import records
from widefield.ops.depthwise_conv.triton.table import read_table

ROOT = Path(__file__).parents[2]
PARTS = ("machine", "ceilings", "correctness", "kernels", "peers", "networks")


def rehearse(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    caches = {"TRITON_CACHE_DIR": str(out.with_name("triton")), "TMPDIR": str(out.parent), "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **caches, "OUT": str(out), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "benchmarks" / "on_gpu.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=out.parent, check=False)


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = rehearse(tmp_path / "out", "kernel")
    assert done.returncode == 2
    assert "unknown part 'kernel'" in done.stderr


def test_a_part_that_fails_leaves_the_others_and_nothing_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "machine.json").write_text("kept")
    done = rehearse(out, "--dry-run-cpu", "machine", "ceilings")
    assert done.returncode == 1
    assert "machine.json exists; name another folder in OUT" in done.stdout
    assert "failed: machine" in done.stdout
    assert (out / "machine.json").read_text() == "kept"
    assert {row["what"] for row in json.loads((out / "ceilings.json").read_text())["rows"]} == {"copy", "matmul"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts_run_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = rehearse(out, "--dry-run-cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in out.iterdir()} == {f"{part}.json" for part in PARTS} | {"sm_tiny.json", "on_gpu.log"}
    checked = json.loads((out / "correctness.json").read_text())
    assert checked["is_complete"]
    assert checked["red"] == 0
    assert {row["config"]["kernel"] for row in checked["rows"] if "config" in row} >= {
        "rows",
        "columns",
        "planes",
        "hankel",
    }
    assert {row["map"] for row in checked["rows"]} == {"forward", "grad_input", "grad_weight"}
    timed = json.loads((out / "kernels.json").read_text())
    assert timed["is_complete"]
    table = read_table(out / "sm_tiny.json")
    assert set(table) == {row["key"] for row in timed["rows"]}
    peers = records.read(out / "peers.json")
    assert all(entry.wrong == () for entry in peers.maps)
    assert {"cudnn", "torch_fft", "auto"} <= {r.name for r in peers.maps[0].results}
    networks = records.read(out / "networks.json")
    assert {entry.mode for entry in networks.models} == {"inference", "train_step"}
