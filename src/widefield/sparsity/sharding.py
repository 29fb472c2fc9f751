"""Tensors that are spread over processes (FSDP2's `DTensor`): the part that lies here, and the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from widefield._core.checks import check


def is_sharded(tensor: Tensor) -> bool:
    """Return whether `tensor` is a `DTensor`."""
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` in this process; writing to it writes to `tensor`."""
    like: Any = tensor
    return like.to_local() if is_sharded(tensor) else tensor.detach()


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Return all of `tensor`; called on all processes where it is sharded."""
    like: Any = tensor
    return like.full_tensor() if is_sharded(tensor) else tensor.detach()


def share_of(values: Tensor, tensor: Tensor) -> Tensor:
    """Return the part of `values`, which every process has whole, that belongs to this process's part of `tensor`.

    Args:
        values: Of the shape of all of `tensor`, on its device.
        tensor: Sharded or not.
    """
    if not is_sharded(tensor):
        return values
    from torch.distributed.tensor import distribute_tensor

    like: Any = tensor
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None).to_local()


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return the module within DDP and `torch.compile`, which rename its parameters.

    Raises:
        InputError: If a part of it is wrapped in FSDP1, which flattens parameters.
    """
    module: Any = model
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod
        else:
            break
    flattened = [name for name, part in module.named_modules() if type(part).__name__ == "FullyShardedDataParallel"]
    check(
        not flattened,
        "a model that keeps the shapes of its parameters",
        f"one wrapped in FullyShardedDataParallel ({flattened[0] if flattened else ''!r})",
        "use torch.distributed.fsdp.fully_shard (FSDP2) or DDP",
    )
    return module
