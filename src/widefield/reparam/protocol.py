"""What a module offers so that `merge` can fold it, and the guard that every such module shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, cast, runtime_checkable

from torch import nn

from widefield._core.checks import check


@runtime_checkable
class Reparameterizable(Protocol):
    """A module with a branched form for training and a merged form for inference: the same function.

    ``reparameterize`` is also the hook that timm's ``reparameterize_model`` calls: it folds all that is below the
    module, in place, does nothing when called again, and refuses training mode.
    """

    is_merged: bool

    def reparameterize(self) -> None:
        """Fold the module to its merged form, in place."""
        ...


def check_evaluation_mode(module: nn.Module) -> None:
    """Raise unless `module` and all below it are in evaluation mode.

    In training mode a BatchNorm uses the statistics of the batch, so that no merged form equals it.

    Raises:
        InputError: If a module is in training mode; it is named.
    """
    name = next(
        (name for name, child in cast("Iterable[tuple[str, nn.Module]]", module.named_modules()) if child.training),
        None,
    )
    where = f"the module {name!r}" if name else "the module itself"
    check(
        name is None,
        "a network in evaluation mode for merging",
        f"one in training mode ({where})",
        "call model.eval() first",
    )
