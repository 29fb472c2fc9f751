"""What a compiled kernel takes of a multiprocessor and which instructions it holds, read from its machine code."""

# Triton has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widefield._core.errors import RunError
from widefield.ops.depthwise_conv.triton.tiles import CompileCase

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)")
_VERSION = re.compile(r"release [\d.]+, (V[\d.]+)")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """One kernel on one architecture."""

    registers: int
    """Registers of one thread."""
    stack: int
    """Bytes of local memory of one thread."""
    shared_bytes: int
    """Shared memory of one program."""
    spills: int
    """Instructions that move registers to and from local memory (STL, LDL)."""
    tensor_core: int
    """Instructions of the tensor cores (HMMA, HGMMA, UTCHMMA)."""
    fma: int
    """Float32 multiply-adds (FFMA)."""
    async_copies: int
    """Copies from global to shared memory that no register sees (LDGSTS, UTMALDG)."""
    async_copies_16: int
    """Those of 16 bytes."""
    loads: int
    """Loads from global memory into registers (LDG)."""
    instructions: int
    """All instructions."""


def resources(case: CompileCase, arch: int) -> Resources:
    """Compile `case` for an architecture, without a GPU, and read the result.

    Args:
        case: The kernel and its arguments.
        arch: 80 (A100), 90 (H100, H200), 100 (B200), ...

    Returns:
        What its machine code takes and holds.

    Raises:
        RunError: If the process runs Triton's interpreter, or what cuobjdump says cannot be read.
    """
    code, shared_bytes = _compile(case, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        usage = _USAGE.search(_tool("cuobjdump", "-res-usage", file.name))
        listing = _tool("cuobjdump", "-sass", file.name)
    if usage is None:
        raise RunError(f"Expected cuobjdump to report the registers of {case.name!r}: use another version of Triton.")
    found = Counter(_INSTRUCTION.findall(listing))

    def count(matches: Callable[[str], bool]) -> int:
        return sum(number for name, number in found.items() if matches(name))

    return Resources(
        registers=int(usage[1]),
        stack=int(usage[2]),
        shared_bytes=shared_bytes,
        spills=count(lambda name: name.split(".")[0] in ("STL", "LDL")),
        tensor_core=count(lambda name: name.split(".")[0] in ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "UTCMMA")),
        fma=count(lambda name: name.split(".")[0] == "FFMA"),
        async_copies=count(lambda name: name.split(".")[0] in ("LDGSTS", "UTMALDG")),
        async_copies_16=count(lambda name: name.startswith("LDGSTS") and ".128" in name),
        loads=count(lambda name: name.split(".")[0] == "LDG"),
        instructions=sum(found.values()),
    )


def versions() -> dict[str, str]:
    """Return the versions that generated code depends on: Triton's and its ptxas'."""
    import triton

    ptxas = _VERSION.search(_tool("ptxas", "--version"))
    return {"triton": triton.__version__, "ptxas": ptxas[1] if ptxas else "unknown"}


def _compile(case: CompileCase, arch: int) -> tuple[bytes, int]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

    kernel: Any = case.kernel
    if not hasattr(kernel, "cache_key"):
        raise RunError("Expected a compiled kernel, but Triton's interpreter is on: unset TRITON_INTERPRET.")
    names: list[str] = kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if signature[name].startswith("*")
    }
    source_type: Any = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    source = source_type(fn=kernel, signature=signature, constexprs=case.constexprs, attrs=aligned)
    # Triton is about to change this default, and warns where it is left open.
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    compiler: Any = triton
    compiled = compiler.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled.asm["cubin"], int(compiled.metadata.shared)


def _tool(name: str, *arguments: str) -> str:
    import triton

    folder = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin"
    done = subprocess.run([str(folder / name), *arguments], capture_output=True, text=True, check=True)
    return done.stdout
