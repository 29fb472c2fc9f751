"""Modules that compute in float32 where the rest of the network runs under autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.utils.hooks import RemovableHandle


def compute_in_float32(modules: Iterable[nn.Module]) -> list[RemovableHandle]:
    """Turn autocast off within `modules`, and give them floating point inputs in float32.

    It is for parts whose activations leave the range of fp16 (65504) or lose too much in bf16. Their outputs stay
    float32; autocast rounds them again where the next convolution or matrix product takes them. Copies made of the
    modules while the hooks are on have them too.

    Args:
        modules: Modules with parameters in float32.

    Returns:
        Handles; `remove()` of each takes the hooks off.
    """
    handles: list[RemovableHandle] = []
    for module in modules:
        entered: list[torch.autocast] = []

        def enter(
            module: nn.Module, args: Any, keywords: Any, entered: list[torch.autocast] = entered
        ) -> tuple[Any, Any]:
            tensor = next((value for value in (*args, *keywords.values()) if isinstance(value, Tensor)), None)
            context = torch.autocast("cpu" if tensor is None else tensor.device.type, enabled=False)
            context.__enter__()
            entered.append(context)
            return tree_map(_wide, args), tree_map(_wide, keywords)

        def leave(module: nn.Module, args: Any, output: Any, entered: list[torch.autocast] = entered) -> None:
            if entered:
                entered.pop().__exit__(None, None, None)

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    return handles


def _wide(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_narrow else value
