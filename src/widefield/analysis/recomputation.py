"""Less memory for a backward pass through any network: its blocks are computed again."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputing(model: nn.Module, layer: str | None = None) -> Iterator[tuple[str, ...]]:
    """Keep, within this context, only the inputs of blocks for the backward pass, and compute the rest again there.

    Blocks are the composite elements of ``nn.Sequential`` and ``nn.ModuleList`` that hold no such sequence themselves.
    Nothing of the network is changed for good. The result is the same, for one more forward pass.

    Args:
        model: Any network.
        layer: Name of a module whose output is looked at; the block around it is kept whole.

    Yields:
        Names of the blocks.
    """
    blocks = {name: module for name, module in _blocks("", model) if layer is None or not layer.startswith(f"{name}.")}
    own = {name: module.__dict__.get("forward") for name, module in blocks.items()}
    try:
        for module in blocks.values():
            module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
        yield tuple(blocks)
    finally:
        for name, module in blocks.items():
            module.__dict__.pop("forward", None)
            if own[name] is not None:
                module.__dict__["forward"] = own[name]


def _blocks(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if _is_sequence(module) and _is_composite(child) and not any(map(_is_sequence_of_blocks, child.modules())):
            yield path, child
        else:
            yield from _blocks(path, child)


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _is_composite(module: nn.Module) -> bool:
    # A container that is not a Sequential has no forward of its own.
    return not isinstance(module, nn.ModuleList | nn.ModuleDict) and next(module.children(), None) is not None


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    return _is_sequence(module) and sum(map(_is_composite, module.children())) > 1
