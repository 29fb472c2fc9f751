from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from widefield._core.errors import RunError
from widefield.ops.depthwise_conv.triton import resources as machine_code
from widefield.ops.depthwise_conv.triton.tiles import CompileCase

RECORD = Path(__file__).parents[3] / "benchmarks" / "results" / "triton_resources.json"
MODULE = "widefield.ops.depthwise_conv.triton.aot"


def compiled(folder: Path, *arguments: str) -> dict[str, Any]:
    """The record as a process without Triton's interpreter makes it: its decorators differ."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    output = folder / "resources.json"
    command = [sys.executable, "-m", MODULE, *arguments, "-o", str(output)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(output.read_text())


def compare(found: dict[str, Any]) -> None:
    """No register spills, tensor cores at work, and no more taken than the record says."""
    record = json.loads(RECORD.read_text())
    expected = {(kernel["name"], kernel["arch"]): kernel for kernel in record["kernels"]}
    taken = {(kernel["name"], kernel["arch"]): kernel for kernel in found["kernels"]}
    assert [place for place, kernel in taken.items() if kernel["spills"]] == []
    assert [place for place, kernel in taken.items() if not kernel["tensor_core"]] == []
    assert sorted(set(taken) - set(expected)) == [], f"not on record: run python -m {MODULE} -o {RECORD.name}"
    if Version(found["triton"]) < Version(record["triton"]):
        # An older Triton shares out registers otherwise; that nothing spills is what has to hold.
        return
    is_same = all(found[tool] == record[tool] for tool in ("triton", "ptxas"))
    for place, kernel in taken.items():
        for field in ("registers", "shared_bytes"):
            slack = 0 if is_same else 0.3 * expected[place][field]
            assert abs(kernel[field] - expected[place][field]) <= slack, (*place, field)


def test_the_kernels_of_the_known_layers_run_on_tensor_cores_without_spills(tmp_path: Path) -> None:
    only = ("forward 56x56 k31x31", "forward 14x14", "columns forward", "forward 56x56 k7x7 bf16", "hankel")
    found = compiled(tmp_path, "--arch", "90", "--only", *only)
    assert {kernel["name"].split()[0] for kernel in found["kernels"]} >= {"rows", "columns", "planes", "hankel", "roll"}
    assert len(found["kernels"]) > 25
    compare(found)


@pytest.mark.slow
def test_all_kernels_on_all_architectures_run_on_tensor_cores_without_spills(tmp_path: Path) -> None:
    found = compiled(tmp_path)
    assert {kernel["arch"] for kernel in found["kernels"]} == {80, 90, 100}
    compare(found)


def test_in_the_interpreter_there_is_nothing_to_compile() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "--arch", "90"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    expected = "Expected a compiled kernel, but Triton's interpreter is on: unset TRITON_INTERPRET."
    assert expected in done.stderr


def test_instructions_are_counted_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;             /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;   /* 0x0000000402048981 */
        /*0020*/              @P1  LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64] ;
        /*0030*/                   LDGSTS.E.64 [R7], desc[UR4][R2.64] ;
        /*0040*/            @UP0   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0050*/                   STL [R1], R4 ;
        /*0060*/                   LDL.64 R4, [R1] ;
        /*0070*/                   FFMA R4, R4, R4, R4 ;
    """
    answers = {"-res-usage": "Function f:\n  REG:64 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:560", "-sass": listing}
    monkeypatch.setattr(machine_code, "_tool", lambda name, *arguments: answers[arguments[0]])
    monkeypatch.setattr(machine_code, "_compile", lambda case, arch: (b"cubin", 2048))
    case = CompileCase(name="f", kernel=None, signature={}, constexprs={}, num_warps=4, num_stages=2)
    assert machine_code.resources(case, 90) == machine_code.Resources(
        registers=64,
        stack=8,
        shared_bytes=2048,
        spills=2,
        tensor_core=1,
        fma=1,
        async_copies=2,
        async_copies_16=1,
        loads=1,
        instructions=8,
    )
    answers["-res-usage"] = ""
    with pytest.raises(RunError, match="Expected cuobjdump to report the registers of 'f'"):
        machine_code.resources(case, 90)
