"""The trainer: what a run is made of, and the way into it."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from widefield._core.checks import check
from widefield.engine.checkpointing import latest_checkpoint
from widefield.engine.devices import make_accelerator
from widefield.engine.fit_result import FitResult
from widefield.engine.optim import make_optimizer
from widefield.engine.reporter import LogReporter, Reporter
from widefield.engine.training_run import TrainingRun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from accelerate import Accelerator

    from widefield.engine.config import EmaConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
    from widefield.engine.protocol import Extension, Loader, Task
    from widefield.engine.run_folder import RunFolder


class Trainer:
    """Trains a model on a task.

    The model is moved to the device and its optimizer is built at once, so that `trainer.optimizer` can take hooks
    before `fit`. Epochs and steps count from 1 wherever a person sees them.

    Args:
        model: Any module; parameters that require no gradient are left alone.
        task: Loss and validation.
        loader: Batches of this rank.
        folder: Folder of the run, visible to every process.
        trainer: Length, precision, devices, checkpoints, logs.
        optimizer: The optimizer.
        schedule: Its learning rate.
        ema: Average of the weights.
        reporter: Told of progress on the main process; `LogReporter` if None.
        accelerator: Made from `trainer` if None.
        extensions: Take part in the run and in its checkpoints.
        origin: What the run is made of, as JSON: kept in its checkpoints under "origin", for `RunFolder.create` to
            compare when the run is taken up.

    Raises:
        InputError: If a setting cannot work.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        loader: Loader,
        folder: RunFolder,
        *,
        trainer: TrainerConfig,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        ema: EmaConfig,
        reporter: Reporter | None = None,
        accelerator: Accelerator | None = None,
        extensions: Sequence[Extension] = (),
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        check(len(loader) > 0, "a loader with batches", "an empty one", "add data or make the batch smaller")
        self.accelerator = make_accelerator(trainer) if accelerator is None else accelerator
        check(
            self.accelerator.gradient_accumulation_steps == 1,
            "an accelerator without gradient accumulation",
            f"one of {self.accelerator.gradient_accumulation_steps} steps",
            "set trainer.accumulate_steps instead",
        )
        self.model, self.task, self.loader, self.folder = model, task, loader, folder
        self.config, self.schedule, self.ema = trainer, schedule, ema
        self.extensions = tuple(extensions)
        self.origin: Mapping[str, Any] = {} if origin is None else origin
        self.reporter: Reporter = LogReporter() if reporter is None else reporter
        model.to(self.accelerator.device)
        if trainer.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimizer = make_optimizer(model, optimizer)
        self.steps_per_epoch = math.ceil(len(loader) / trainer.accumulate_steps)

    def fit(self, resume: bool = False) -> FitResult:
        """Train to the last epoch.

        Afterwards the model holds the weights of the last update, its BatchNorm layers are plain again, and no wrapper
        of accelerate, DDP or `torch.compile` is left on it. A sharded run that fails leaves those of its last
        validation. Signal handlers are installed for the time of this call, if it is made in the main thread.

        Args:
            resume: Go on from the newest intact checkpoint in the folder, or begin if there is none.

        Returns:
            The result, with the best weights, or the last ones where the task monitors nothing.

        Raises:
            InputError: If the folder holds a run and `resume` is false, or a checkpoint that does not fit.
            RunError: If the loss is not finite or the disk refuses a write.
            RunInterruptedError: If SIGTERM or SIGUSR1 came: a checkpoint is written first. The step at hand is
                finished; a validation is given up if there is one process, else it is finished too. Several processes
                have agreed within about 10 s and a step.
        """
        check(
            resume or not self.accelerator.is_main_process or not self._has_run(),
            "a run folder without a run in it",
            f"{self.folder.path}, which has one",
            "resume it, or choose another folder",
        )
        with ExitStack() as stack:
            return TrainingRun(self, stack).go(self._checkpoint() if resume else None)

    def _has_run(self) -> bool:
        folder = self.folder
        return folder.metrics.exists() or folder.steps.exists() or any(folder.checkpoints.glob("*step_*"))

    def _checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from; the main process chooses for all."""
        accelerator = self.accelerator
        path = latest_checkpoint(self.folder.checkpoints) if accelerator.is_main_process else None
        step = -1 if path is None else int(path.name.removeprefix("step_"))
        if accelerator.num_processes > 1:
            chosen = torch.tensor([step], device=accelerator.device)
            dist.broadcast(chosen, 0)
            step = int(chosen)
        return None if step < 0 else self.folder.checkpoints / f"step_{step:08d}"
