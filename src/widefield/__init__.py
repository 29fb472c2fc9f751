"""Large-kernel ConvNets in PyTorch: train, merge with a certificate, use.

``widefield.ops`` and ``widefield.nn`` need torch alone; what needs timm is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from widefield import ops as ops
from widefield.__about__ import __version__ as __version__
from widefield.ops import explain as explain
from widefield.reparam import MergeReport as MergeReport
from widefield.reparam import merge as merge

if TYPE_CHECKING:
    from widefield.models import create_model as create_model
    from widefield.models import list_models as list_models
    from widefield.models import load_published as load_published

_FROM_MODELS = ("create_model", "list_models", "load_published")


def __getattr__(name: str) -> Any:
    if name in _FROM_MODELS:
        from widefield import models

        return getattr(models, name)
    raise AttributeError(f"module 'widefield' has no attribute {name!r}")
