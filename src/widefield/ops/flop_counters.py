"""Formulas of the registered operators for torch's `FlopCounterMode`.

torch's counter is not imported for it, since that would import Triton: it is taught when one is at work.
"""

# The stack of modes has no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Formula = Callable[..., int]


def teach_counters(formulas: Mapping[Any, Formula]) -> None:
    """Give every FLOP counter at work the formulas of operators, unless it has its own.

    Args:
        formulas: For each operator a function of its arguments, tensors given by their shapes, and of ``out_shape``.
    """
    for mode in _get_current_dispatch_mode_stack():
        registry: Any = getattr(getattr(mode, "counter", None), "flop_registry", None)
        if registry is not None:
            for operator, formula in formulas.items():
                registry.setdefault(operator, _of_tensors(formula))


def _of_tensors(formula: Formula) -> Formula:
    def count(*values: Any, out_val: Any = None, **named: Any) -> int:
        shapes = [tuple(value.shape) if isinstance(value, torch.Tensor) else value for value in values]
        return formula(*shapes, out_shape=tuple(out_val.shape), **named)

    return count
