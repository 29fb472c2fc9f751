"""Where a run happens: the accelerator, its random numbers, and batches on their way to it."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from widefield._core.checks import check

if TYPE_CHECKING:
    from accelerate import Accelerator

    from widefield.engine.config import TrainerConfig


def make_accelerator(config: TrainerConfig) -> Accelerator:
    """Build the accelerator of a run from its config and, under `torchrun`, from the environment.

    accelerate keeps device and precision once per Python interpreter; where an earlier run used others, that record
    is dropped so that each run gets what its own config says.

    Args:
        config: Device and precision of the run.

    Returns:
        An `Accelerator` on this process's device (gloo between CPU processes, NCCL between GPUs).

    Raises:
        InputError: If the precision does not exist on the device.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    # Said outright: with cpu=False on a machine without a GPU, accelerate leaves torchrun's processes unconnected.
    on_cpu = config.device == "cpu" or not torch.accelerator.is_available()
    check(
        config.precision != "fp16" or not on_cpu,
        "a GPU for precision fp16",
        "the CPU",
        "use bf16 or no as trainer.precision",
    )
    known = AcceleratorState._shared_state
    device = PartialState._shared_state.get("device")
    if known.get("_mixed_precision", config.precision) != config.precision or (
        device is not None and (device.type == "cpu") != on_cpu
    ):
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=on_cpu, mixed_precision=config.precision)


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch (every device); rank 0 gets `seed` itself, others streams derived from it.

    Args:
        seed: Seed of the run.
        rank: Index of this process.
    """
    if rank:
        seed = int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def move_batch(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """Return `batch` with every tensor on `device`; the batch itself is not changed.

    Args:
        batch: Tensors in any nesting of dataclasses, mappings, named tuples, tuples and lists. What has a `to` method
            is asked to move itself, and anything else stays as it is.
        device: Where the tensors go.
        channels_last: Give four-dimensional floating point tensors the channels_last memory format.
    """
    if isinstance(batch, Tensor):
        if channels_last and batch.ndim == 4 and batch.is_floating_point():
            return batch.to(device, non_blocking=True, memory_format=torch.channels_last)
        return batch.to(device, non_blocking=True)
    if isinstance(batch, (str, bytes)):
        return batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        moved = copy.copy(batch)
        for field in dataclasses.fields(batch):
            object.__setattr__(moved, field.name, move_batch(getattr(batch, field.name), device, channels_last))
        return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_batch(part, device, channels_last) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(move_batch(part, device, channels_last) for part in batch)
    move = getattr(batch, "to", None)
    if callable(move):
        return move(device)
    if isinstance(batch, Mapping):
        return {name: move_batch(part, device, channels_last) for name, part in batch.items()}
    return batch
