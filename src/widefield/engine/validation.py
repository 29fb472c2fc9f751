"""The scores of a model between two epochs, given up when a signal comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from widefield._core.checks import check, check_name
from widefield._core.errors import RunError
from widefield.engine.random_state import restore_rng_state, rng_state

if TYPE_CHECKING:
    from collections.abc import Collection

    from accelerate import Accelerator
    from torch import nn

    from widefield.engine.interruption import StopSignals
    from widefield.engine.protocol import Task


class ValidationStoppedError(Exception):
    """The model was called after a signal had come."""


@torch.no_grad()
def validate(
    task: Task, model: nn.Module, accelerator: Accelerator, signals: StopSignals, reserved: Collection[str]
) -> dict[str, float]:
    """Return the metrics of a task that monitors one of them; called on all ranks.

    Args:
        task: What to evaluate.
        model: The model; it is left in evaluation mode.
        accelerator: Of the run.
        signals: Asked at every call of the model.
        reserved: Names that the metrics must not have.

    Raises:
        InputError: If the metric to monitor is missing, or a name is reserved.
        ValidationStoppedError: If a signal came; the random state is as it was before.
        RunError: As the task; the random state is as it was before.
    """
    if accelerator.num_processes > 1:
        # Without synchronised BatchNorm the ranks' statistics differ, and the first rank's are the ones saved.
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
    model.eval()
    before = rng_state()

    def stop(*_: Any) -> None:
        if signals.is_asked:
            raise ValidationStoppedError

    # Only one process can stop here by itself: others would wait for it within the task.
    alone = accelerator.num_processes == 1
    handle = model.register_forward_pre_hook(stop) if alone else None
    try:
        with accelerator.autocast():
            metrics = task.evaluate(model, accelerator.device)
    except (ValidationStoppedError, RunError):
        # What is kept now is the run before its validation.
        restore_rng_state(before)
        raise
    finally:
        if handle is not None:
            handle.remove()
    values = {name: float(value) for name, value in metrics.items()}
    check_name(task.monitor or "", values, "validation metric to monitor")
    taken = sorted(values.keys() & set(reserved))
    check(
        not taken,
        f"validation metrics with names other than {', '.join(reserved)}",
        ", ".join(taken),
        "rename them in the task",
    )
    return values
