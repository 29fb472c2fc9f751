"""Parameters spread over the processes of a run, by torch's `fully_shard` (FSDP2)."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from widefield._core.checks import check

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNIT = re.compile(r"(^|\.)(blocks|layers)\.\d+$")


def shard(model: nn.Module, device: torch.device, ranks: int) -> None:
    """Spread the parameters of `model` over all processes, in place; they become `DTensor`s of the same names.

    The modules that are gathered one at a time in forward and backward are those called `blocks.N` or `layers.N`, as in
    timm; what lies outside of them is gathered together. Buffers stay whole. accelerate's FSDP plugin would do the same
    between GPUs, but it leaves processes on CPUs to DDP.

    Args:
        model: On `device`, equal on all processes; its forward must be the only way in.
        device: Of this process.
        ranks: Number of processes.

    Raises:
        InputError: If two of these parts share a parameter.
    """
    check_units(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks,))
    for name, module in reversed(list(model.named_modules())):
        if _UNIT.search(name):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def check_units(model: nn.Module) -> None:
    """Raise unless every parameter lies within one of the parts that `shard` gathers.

    Args:
        model: Any module.

    Raises:
        InputError: If two parts share a parameter.
    """
    places: dict[int, dict[str, str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        prefixes = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
        unit = next((prefix for prefix in prefixes if _UNIT.search(prefix)), "")
        places.setdefault(id(parameter), {}).setdefault(unit, name)
    shared = next((list(names.values()) for names in places.values() if len(names) > 1), [])
    check(
        not shared,
        "parameters of one block each for trainer.sharding fsdp",
        f"one that is both {' and '.join(shared)}",
        "use trainer.sharding none",
    )


@contextmanager
def without_sync(model: nn.Module) -> Iterator[None]:
    """Add up the gradients of a sharded model on each process alone, for batches before the last of a step."""
    sharded: Any = model
    sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        sharded.set_requires_gradient_sync(True)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether `tensor` is a `DTensor`."""
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Return all of `tensor`; called on all processes where it is sharded."""
    like: Any = tensor
    return like.full_tensor() if is_sharded(tensor) else tensor.detach()


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` in this process; writing to it writes to `tensor`."""
    like: Any = tensor
    return like.to_local() if is_sharded(tensor) else tensor.detach()


@torch.no_grad()
def laid_out_like(values: Tensor, like: Tensor) -> Tensor:
    """Return a copy of `values` on the device, in the memory format and with the sharding of `like`.

    Args:
        values: All of a tensor, equal on all processes.
        like: Of the same shape.
    """
    if not is_sharded(like):
        return torch.empty_like(like, dtype=values.dtype).copy_(values)
    from torch.distributed.tensor import distribute_tensor

    target: Any = like
    return distribute_tensor(values.to(like.device), target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def move_optimizer(optimizer: torch.optim.Optimizer, source: nn.Module, target: nn.Module) -> None:
    """Let `optimizer`, which updates `source`, update `target`; what it has kept of its parameters is forgotten.

    Args:
        optimizer: Its groups, their settings and the hooks stay.
        source: A model.
        target: A copy of it, sharded or not.
    """
    counterpart = dict(zip(map(id, source.parameters()), target.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"][:] = [counterpart.get(id(parameter), parameter) for parameter in group["params"]]
    optimizer.state.clear()
