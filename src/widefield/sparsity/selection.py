"""Which parameters of a network become sparse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from widefield._core.checks import check, check_name

if TYPE_CHECKING:
    from widefield.sparsity.config import SparsityConfig

Select = Callable[[str, Tensor], bool]
"""Whether the parameter of this name becomes sparse."""

LONGEST_SMALL_KERNEL = 7


def matrices(name: str, parameter: Tensor) -> bool:
    """Every 2-d and 4-d tensor, as in SLaK, but no 4-d one that is a vector at heart: the scale of a response norm."""
    return parameter.dim() == 2 or (parameter.dim() == 4 and not _is_vector(parameter))


def weights(name: str, parameter: Tensor) -> bool:
    """Every tensor of two or more dimensions, except those whose elements all lie along one of them."""
    return parameter.dim() == 2 or (parameter.dim() > 2 and not _is_vector(parameter))


def large_kernels(name: str, parameter: Tensor) -> bool:
    """Every convolution, stripes too, that is longer than 7 taps on some side."""
    return parameter.dim() > 2 and max(parameter.shape[2:]) > LONGEST_SMALL_KERNEL and not _is_vector(parameter)


def _is_vector(parameter: Tensor) -> bool:
    return max(parameter.shape) == parameter.numel()


SELECTIONS: dict[str, Select] = {"matrices": matrices, "weights": weights, "large_kernels": large_kernels}


def selected_by(config: SparsityConfig) -> Select:
    """Return the predicate that `config.which` and `config.pattern` describe.

    Args:
        config: Only these two fields are read.

    Raises:
        InputError: If there is no such selection, or the pattern is not a regular expression.
    """
    check_name(config.which, SELECTIONS, "selection of parameters")
    try:
        pattern = re.compile(config.pattern)
    except re.error as error:
        pattern = None
        reason = str(error)
    else:
        reason = ""
    check(pattern is not None, "a regular expression as pattern", f"{config.pattern!r} ({reason})", "mend it")
    assert pattern is not None
    kind = SELECTIONS[config.which]
    return lambda name, parameter: kind(name, parameter) and pattern.search(name) is not None


def select_parameters(model: nn.Module, select: Select) -> dict[str, nn.Parameter]:
    """Return the parameters that `select` chooses among those that are trained, a tied one under its first name.

    Args:
        model: Any module, without wrappers.
        select: The predicate.

    Raises:
        InputError: If there is none.
    """
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and select(name, parameter)
    }
    check(
        bool(found),
        "at least one trainable parameter to make sparse",
        f"none in {type(model).__name__}",
        "change which or pattern, or set requires_grad",
    )
    return found
