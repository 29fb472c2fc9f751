from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "damaged_files.py"


def campaign(mutations: int, seed: int, output: Path) -> dict:
    words = [sys.executable, str(SCRIPT), "--mutations", str(mutations), "--seed", str(seed), "-o", str(output)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text())


@pytest.mark.slow
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_damage_is_refused_in_one_sentence_or_does_no_harm(seed: int, tmp_path: Path) -> None:
    record = campaign(120, seed, tmp_path / "record.json")
    assert len(record["rows"]) == 120
    assert {row["mutation"] for row in record["rows"]} >= {"flip_the_body", "code_in_the_pickle", "change_the_card"}
    assert set(record["outcomes"]) <= {"refused", "same", "unguarded"}
    unguarded = [row for row in record["rows"] if "unguarded" in row["outcomes"].values()]
    assert all(row["format"] in ("pickle", "safetensors") for row in unguarded)
    assert record["outcomes"]["refused"] > record["readings"] / 2
