"""What every operator asks of its operands before it looks at their shapes, and what it tells TorchScript."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from widefield._core.checks import check
from widefield._core.errors import InputError

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Function = TypeVar("Function", bound=Callable[..., Any])


def check_dense(*tensors: Tensor | None) -> None:
    """Refuse nested, sparse and otherwise packed tensors, whose shapes and strides mean something else."""
    for tensor in tensors:
        if tensor is not None:
            check(
                not tensor.is_nested,
                "tensors of one shape",
                "a nested tensor",
                "pad its parts to one size, or call the operator for each",
            )
            check(
                tensor.layout == torch.strided,
                "dense tensors",
                f"a tensor of layout {tensor.layout}",
                "convert it with x.to_dense()",
            )


def check_floating(x: Tensor) -> None:
    """Refuse an input whose type no backend computes in."""
    name = "a floating-point input" if not x.is_floating_point() else "an input of 16, 32 or 64 bit floating point"
    check(x.dtype in FLOATING, name, f"{x.dtype}", "convert it, for instance with x.float()")


def autocast_dtype(x: Tensor, *others: Tensor | None) -> torch.dtype | None:
    """Return the type that autocast asks for, or None where it is off or does not concern these tensors."""
    device = x.device.type
    if device == "meta" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    is_eligible = all(tensor is None or tensor.dtype in FLOATING for tensor in (x, *others))
    return torch.get_autocast_dtype(device) if is_eligible else None


def not_scriptable(function: Function) -> Function:
    """Let `torch.jit.script` refuse a function or a layer, and what holds it, in one sentence."""

    def refuse(*layer: object) -> NoReturn:
        raise InputError(
            f"eager code, torch.compile, torch.export or torch.jit.trace around {function.__name__}",
            "torch.jit.script, which cannot hold a choice of backends",
            "trace the model with torch.jit.trace, or export it with torch.export",
        )

    function.__prepare_scriptable__ = refuse  # pyright: ignore[reportFunctionMemberAccess] - torch's own name
    return function
