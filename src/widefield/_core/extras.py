"""Optional dependencies, imported where they are used, with the command that installs them in the error."""

from __future__ import annotations

import importlib
from types import ModuleType

from widefield._core.errors import MissingExtraError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module` or say how to install it.

    Args:
        module: Dotted name of the module.
        extra: The extra of widefield that brings it.
        purpose: What needs it, for the message ("reading WebDataset shards").

    Returns:
        The imported module.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"Expected the package {module!r} for {purpose}, but it is not installed: "
            f"run pip install 'widefield[{extra}]'."
        ) from error
