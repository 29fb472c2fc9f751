"""What every launch shares: device, arithmetic, alignment and index width."""

# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.tiles import CompileCase, TileConfig, fp32_mode

INT32_ELEMENTS = 2**31 - 1


def is_interpreted() -> bool:
    """Return whether Triton's kernels run in its interpreter (``TRITON_INTERPRET=1``), on CPU tensors."""
    if "TRITON_INTERPRET" not in os.environ:
        # Nobody asked: no need to import Triton for the answer.
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make the tensor's GPU the current one, which is where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def precision(dtype: torch.dtype) -> str:
    """Return the ``input_precision`` of dots: the float32 mode, exact in the interpreter, moot for 16 bits."""
    if is_interpreted():
        return "ieee"
    return fp32_mode() if dtype == torch.float32 else "tf32"


def needs_upcast(dtype: torch.dtype) -> bool:
    """Return whether to widen before a dot: the interpreter multiplies the bit patterns of bfloat16."""
    return is_interpreted() and dtype == torch.bfloat16


def vector(x: Tensor, row: int, most: int) -> int:
    """Return how many elements one load may take: a power of 2 that divides rows of `row` and the base address."""
    size = x.element_size()
    start = x.data_ptr() // size if x.data_ptr() % size == 0 else 1
    return math.gcd(math.gcd(row, 16 // size), math.gcd(most, start) if start else most)


def needs_int64(*tensors: Tensor) -> bool:
    """Return whether an element's index in any of `tensors` may exceed 31 bits, tiles overhanging the end included."""
    return max(tensor.numel() for tensor in tensors) > INT32_ELEMENTS - 2**20


def options(
    config: TileConfig,
    x: Tensor,
    others: Sequence[Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
) -> dict[str, Any]:
    """Return the constants and options that every kernel of forward and grad_input is launched with.

    Args:
        config: Tiles.
        x: The image.
        others: The other large tensors that the kernel indexes.
        bias: (C,) or none.
        residual: Or none.
        activation: Or none.
    """
    return {
        "PRECISION": precision(x.dtype),
        "UP": needs_upcast(x.dtype),
        "INT64": needs_int64(x, *others),
        "HAS_BIAS": bias is not None,
        "HAS_RESIDUAL": residual is not None,
        "ACTIVATION": activation or "",
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }


TYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
"""Triton's names of the element types that the kernels take."""


def compile_case(
    kernel: Any,
    pointers: Sequence[str],
    sizes: Sequence[str],
    constexprs: dict[str, object],
    problem: Problem,
    pass_: Pass,
    config: TileConfig,
    dtype: torch.dtype,
) -> CompileCase:
    """Return the ahead-of-time compile of one kernel as a launch with aligned tensors on a GPU would ask for it.

    Args:
        kernel: The jitted function.
        pointers: Names of its tensors, all of `dtype`.
        sizes: Names of its run-time numbers, 32 bits each.
        constexprs: Constants of the tiles; those that every kernel has are added here.
        problem: What to convolve.
        pass_: Which map.
        config: Tiles.
        dtype: Of all tensors.
    """
    element = TYPE_NAMES[dtype]
    shape = f"{problem.height}x{problem.width} k{problem.kernel_size[0]}x{problem.kernel_size[1]}"
    tiles = f"{config.block_m}x{config.block_n}x{config.block_k} r{config.rows} c{config.channels}"
    return CompileCase(
        name=f"{config.kernel} {pass_} {shape} {element} {tiles} w{config.num_warps} s{config.num_stages}",
        kernel=kernel,
        signature=dict.fromkeys(pointers, f"*{element}") | dict.fromkeys(sizes, "i32"),
        constexprs=constexprs
        | {
            "PRECISION": fp32_mode() if dtype == torch.float32 else "tf32",
            "UP": False,
            "INT64": False,
            "HAS_BIAS": pass_ == "forward",
            "HAS_RESIDUAL": False,
            "ACTIVATION": "",
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
