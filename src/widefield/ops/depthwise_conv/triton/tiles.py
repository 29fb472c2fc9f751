"""What a Triton launch is made of: tile sizes, one compile's arguments, and how float32 is multiplied."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, get_args

from widefield._core.checks import check_name

KernelName = Literal["rows", "columns", "planes", "channels_last", "hankel", "roll"]
KERNEL_NAMES: tuple[KernelName, ...] = get_args(KernelName)

Fp32Mode = Literal["tf32x3", "tf32", "bf16x3"]
FP32_MODES: tuple[Fp32Mode, ...] = get_args(Fp32Mode)

_fp32_mode: ContextVar[Fp32Mode] = ContextVar("widefield_fp32_mode", default="tf32x3")


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """How one kernel cuts a problem into tiles: the M x N accumulator, the depth K of one dot, and the pipeline."""

    kernel: KernelName
    """Which kernel runs."""
    block_m: int
    """Rows of the accumulator: image rows, columns or whole images, as the kernel says."""
    block_n: int
    """Columns of the accumulator: outputs along the Toeplitz axis."""
    block_k: int
    """Inputs along the Toeplitz axis that one dot contracts."""
    rows: int = 0
    """Output rows of one image in a tile of `block_m`, filled up with images; 0 takes the rows of all in order."""
    channels: int = 1
    """Channels of one program."""
    vector: int = 8
    """Most elements of one load of the input."""
    is_padded: bool = False
    """Whether input rows are first copied to a multiple of 8 elements."""
    splits: int = 1
    """Parts of the batch that are summed apart (weight gradient only)."""
    num_warps: int = 4
    """Warps of 32 threads that share a program."""
    num_stages: int = 3
    """Loads in flight, as Triton counts them."""


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """The arguments of one ahead-of-time compile of a kernel."""

    name: str
    """What is compiled, for records: kernel, layer, dtype, pass, tiles."""
    kernel: Any
    """The function that ``triton.jit`` made."""
    signature: dict[str, str]
    """Triton's type of every argument that is no constant, in order ("*bf16", "i32")."""
    constexprs: dict[str, object]
    """Every constant argument."""
    num_warps: int
    num_stages: int


@contextmanager
def use_fp32_mode(mode: str) -> Generator[None]:
    """Choose how float32 is multiplied on tensor cores within a block.

    Args:
        mode: "tf32x3", the default, is as exact as float32 itself (7.6e-8 relative), at three times the cost of
            "tf32" (3e-4); "bf16x3" lies between them (4.3e-6).

    Raises:
        InputError: If there is no such mode.
    """
    check_name(mode, FP32_MODES, "float32 mode")
    token = _fp32_mode.set(next(name for name in FP32_MODES if name == mode))
    try:
        yield
    finally:
        _fp32_mode.reset(token)


def fp32_mode() -> Fp32Mode:
    """Return the mode that `use_fp32_mode` has set here."""
    return _fp32_mode.get()
