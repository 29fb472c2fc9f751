"""What all autograd functions of the operators share: how they are called, what they keep, how tangents add up.

A function has ``push``, its forward-mode derivative; torch's name for it, ``jvp``, is given to a subclass alone, since
what is compiled may not have it.
"""

# torch leaves the context of an autograd function open; what is transformed can be asked by private names alone.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor, is_functorch_wrapped_tensor, is_legacy_batchedtensor
from torch.autograd import Function, forward_ad

from widefield._core.checks import check


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or a forward-mode derivative is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_jit_traced() -> bool:
    """Whether `torch.jit.trace` is recording."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] - documented, but not in its __all__


def is_batched(x: Tensor) -> bool:
    """Whether `x` is a batch of autograd's own vmap (``is_grads_batched``), which knows registered operators alone."""
    return is_legacy_batchedtensor(x)


def is_mapped(x: Tensor) -> bool:
    """Whether `x` is a sample within `torch.vmap`."""
    return is_batchedtensor(x)


def carries_derivatives(x: Tensor) -> bool:
    """Whether what is computed of `x` may be followed by tangents, or is seen by a transform of `torch.func`."""
    return (forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()) or is_functorch_wrapped_tensor(x)


def apply(function: type[Function], *inputs: Any) -> Any:
    """Apply a function, with both its derivatives where that is possible; to `torch.jit.trace` show what it does."""
    if is_jit_traced():
        return function.forward(*inputs)
    return (function if torch.compiler.is_compiling() else _with_jvp(function)).apply(*inputs)


def mapped(function: type[Function], operator: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Apply a function, or below autograd's own vmap the registered operator, which that runs item by item."""
    if not torch.compiler.is_compiling() and any(map(is_batched, inputs[:2])):
        return operator(*inputs)
    return apply(function, *inputs)


def check_no_tangent(*tensors: Tensor | None) -> None:
    """Refuse operands with a tangent, which torch's registered operators would lose without a word."""
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return
    is_dual = any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
    check(
        not is_dual,
        "a registered operator without forward-mode derivatives",
        "an operand with a tangent",
        "call the function of widefield.ops, not torch.ops.widefield or an exported program",
    )


def save_operands(ctx: Any, first: Tensor | None, second: Tensor | None) -> None:
    """Keep the operands for a derivative in either direction; one without gradient or tangent is None in both."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(first, second)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(first, second)


def sum_of(*terms: Tensor | None) -> Tensor | None:
    """Return the sum of those terms that are there."""
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


@lru_cache(maxsize=64)
def _with_jvp(function: Any) -> type[Function]:
    return type(function.__name__, (function,), {"jvp": staticmethod(function.push), "__doc__": function.__doc__})
