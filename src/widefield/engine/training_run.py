"""One run of the training loop: everything that exists only while a model is being trained."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from widefield._core.checks import check, check_name
from widefield._core.errors import RunError
from widefield.engine.checkpointing import (
    best_weights_path,
    disk_errors,
    read_checkpoint,
    save_checkpoint,
    write_weights,
)
from widefield.engine.devices import move_batch, seed_everything
from widefield.engine.ema import ModelEma
from widefield.engine.loss_record import LossRecord
from widefield.engine.metrics_log import MetricsLog
from widefield.engine.model_state import full_state, unique_state
from widefield.engine.optim import make_scheduler
from widefield.engine.random_state import restore_rng_state
from widefield.engine.snapshot import Progress, Snapshot
from widefield.engine.sync_batch_norm import convert_sync_batch_norm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from widefield.engine.trainer import Trainer

_RESERVED = ("epoch", "step", "lr", "train_loss", "seconds")
_WRAPPED = ("forward", "_original_forward", "_is_accelerate_prepared")


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run has reached."""

    best_epoch: int
    """Epoch with the highest monitored metric, from 1; of equal ones the latest, which was trained longer."""

    best: dict[str, float]
    """Validation metrics of that epoch."""

    last: dict[str, float]
    """Validation metrics of the last epoch."""

    history: list[dict[str, float]]
    """Rows of `metrics.csv`, one per epoch."""

    seconds: float
    """Time spent, over all processes that the run was resumed in."""

    best_weights: dict[str, Tensor]
    """State dict of the best epoch on the CPU: the averaged weights if the average is on."""

    steps: int
    """Optimizer updates done."""


class TrainingRun:
    """One call of `Trainer.fit`.

    Args:
        trainer: What the run is made of.
        stack: Takes the callbacks that give the model back as it came.
    """

    def __init__(self, trainer: Trainer, stack: ExitStack) -> None:
        self._trainer, self._config = trainer, trainer.config
        self._accelerator, self._model, self._task = trainer.accelerator, trainer.model, trainer.task
        seed_everything(self._config.seed, self._accelerator.process_index)
        if self._config.sync_batch_norm and self._accelerator.num_processes > 1:
            stack.callback(convert_sync_batch_norm(self._model).restore)
        self._ema = None if trainer.ema.decay is None else ModelEma(self._model, trainer.ema)
        self._scheduler = make_scheduler(
            trainer.optimizer, trainer.schedule, self._config.epochs, trainer.steps_per_epoch
        )
        stack.callback(self._unwrap, {name: vars(self._model)[name] for name in _WRAPPED if name in vars(self._model)})
        self._wrapped: Any = self._accelerator.prepare_model(self._model)
        self._called: Any = torch.compile(self._wrapped) if self._config.compile else self._wrapped
        # accelerate's wrapper scales fp16 losses; otherwise it only searches the import path at every step.
        self._optimizer: torch.optim.Optimizer = (
            trainer.optimizer
            if self._accelerator.scaler is None
            else self._accelerator.prepare_optimizer(trainer.optimizer, device_placement=False)
        )
        self._parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        self._losses = LossRecord()
        self._snapshot = Snapshot(
            model=self._model,
            optimizer=trainer.optimizer,
            ema=self._ema,
            losses=self._losses,
            accelerator=self._accelerator,
        )
        self._progress = Progress()
        self._rng: dict[str, Tensor] | None = None
        self._log: MetricsLog | None = None
        self._reporter = trainer.reporter if self._accelerator.is_main_process else None
        self._stack = stack
        self._last_lr = 0.0
        self._started = self._epoch_started = time.perf_counter()

    def _unwrap(self, before: Mapping[str, Any]) -> None:
        for name in _WRAPPED:
            vars(self._model).pop(name, None)
        vars(self._model).update(before)
        self._model.zero_grad(set_to_none=True)
        self._accelerator.free_memory()

    def go(self, checkpoint: Path | None) -> FitResult:
        """Train from `checkpoint`, or from the start."""
        if checkpoint is not None:
            self._progress, self._rng = self._snapshot.restore(*read_checkpoint(checkpoint))
            self._scheduler.step_update(self._progress.step)
        progress, epochs = self._progress, self._config.epochs
        if self._accelerator.is_main_process:
            with self._disk(self._trainer.folder.path):
                self._log = MetricsLog(
                    self._trainer.folder,
                    progress.history,
                    progress.step,
                    tensorboard=self._config.tensorboard,
                    wandb=self._config.wandb,
                )
            self._stack.callback(self._log.close)
        if self._reporter is not None:
            self._reporter.run_started(epochs, self._trainer.steps_per_epoch, progress.step + 1)
        while progress.epoch < epochs:
            self._train_epoch()
            self._end_epoch()
        if self._reporter is not None:
            self._reporter.run_done()
        return self._result()

    def _train_epoch(self) -> None:
        progress, every = self._progress, self._config.checkpoint_every_steps
        self._model.train()
        batches = self._batches()
        try:
            while progress.batch < len(self._trainer.loader):
                self._step(batches)
                ends = progress.batch == len(self._trainer.loader)
                if every is not None and progress.step % every == 0 and not ends:
                    self._save()
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def _batches(self) -> Iterator[Any]:
        """Return the rest of the epoch's batches, with the random state as it was at the checkpoint."""
        progress = self._progress
        loader, length = self._trainer.loader, len(self._trainer.loader)
        rng, self._rng = self._rng, None
        if rng is not None and progress.batch == 0:
            restore_rng_state(rng)
        source = iter(loader.epoch(progress.epoch, progress.batch)) if progress.batch < length else iter(())
        try:
            for index in range(progress.batch, length):
                try:
                    batch = next(source)
                except StopIteration:
                    raise RunError(
                        f"The loader ended after {index} of the {length} batches that its length promises in epoch "
                        f"{progress.epoch + 1}: mend its __len__."
                    ) from None
                if rng is not None:
                    # Within an epoch the iterator has drawn its own seeds before the checkpoint, not after it.
                    restore_rng_state(rng)
                    rng = None
                yield batch
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    def _step(self, batches: Iterator[Any]) -> None:
        progress, config, accelerator = self._progress, self._config, self._accelerator
        size = min(config.accumulate_steps, len(self._trainer.loader) - progress.batch)
        loss: Tensor | None = None
        for index in range(size):
            batch = move_batch(next(batches), accelerator.device, config.channels_last)
            with nullcontext() if index == size - 1 else accelerator.no_sync(self._wrapped):
                part = self._task.loss(self._called, batch)
                if size > 1:
                    part = part / size
                accelerator.backward(part)
            part = part.detach()
            loss = part if loss is None else loss + part
        assert loss is not None
        if config.clip_norm is not None:
            accelerator.clip_grad_norm_(self._parameters, config.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        progress.step += 1
        progress.batch += size
        self._last_lr = lr = float(max(group["lr"] for group in self._trainer.optimizer.param_groups))
        self._losses.add(progress.step, lr, size, loss)
        if self._ema is not None:
            self._ema.update(self._model, progress.step)
        self._scheduler.step_update(progress.step)
        last = progress.step == config.epochs * self._trainer.steps_per_epoch
        if progress.step % config.log_every_steps == 0 or last:
            self._losses.read(accelerator)
            self._report_step(lr)

    def _report_step(self, lr: float) -> None:
        mean = self._losses.take_interval()
        if mean is None or self._log is None:
            return
        with self._disk(self._trainer.folder.steps):
            self._log.log_step(self._progress.step, mean, lr)
        if self._reporter is not None:
            self._reporter.step_done(self._progress.epoch + 1, self._progress.step, mean, lr)

    def _end_epoch(self) -> None:
        progress = self._progress
        self._losses.read(self._accelerator)
        metrics = self._evaluate()
        now = time.perf_counter()
        row = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "lr": self._last_lr,
            "train_loss": self._losses.take_epoch(),
            **metrics,
            "seconds": progress.epoch_seconds + now - self._epoch_started,
        }
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.history.append(row)
        is_best = self._is_best(metrics[self._task.monitor])
        if is_best:
            progress.best_epoch, progress.best_step = progress.epoch, progress.step
        progress.epoch_seconds, self._epoch_started = 0.0, now
        if self._log is not None:
            with self._disk(self._trainer.folder.metrics):
                self._log.log_epoch(progress.history)
            if is_best:
                path = best_weights_path(self._trainer.folder.checkpoints, progress.step)
                with self._disk(path):
                    write_weights(path, unique_state(self._evaluated))
        self._save()
        if self._reporter is not None:
            self._reporter.epoch_done(progress.epoch, row, is_best)

    @property
    def _evaluated(self) -> nn.Module:
        return self._model if self._ema is None else self._ema.module

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        if self._accelerator.num_processes > 1:
            # Without synchronised BatchNorm the ranks' statistics differ, and the first rank's are the ones saved.
            for buffer in self._evaluated.buffers():
                dist.broadcast(buffer, 0)
        self._evaluated.eval()
        with self._accelerator.autocast():
            metrics = self._task.evaluate(self._evaluated, self._accelerator.device)
        values = {name: float(value) for name, value in metrics.items()}
        check_name(self._task.monitor, values, "validation metric to monitor")
        taken = sorted(values.keys() & set(_RESERVED))
        check(
            not taken,
            f"validation metrics with names other than {', '.join(_RESERVED)}",
            ", ".join(taken),
            "rename them in the task",
        )
        return values

    def _is_best(self, score: float) -> bool:
        best_epoch = self._progress.best_epoch
        if best_epoch is None:
            return True
        best = self._progress.history[best_epoch - 1][self._task.monitor]
        return score >= best or (math.isnan(best) and not math.isnan(score))

    def _save(self) -> None:
        self._losses.read(self._accelerator)
        now, progress = time.perf_counter(), self._progress
        timed = replace(
            progress,
            seconds=progress.seconds + now - self._started,
            epoch_seconds=progress.epoch_seconds + now - self._epoch_started,
        )
        tensors, state = self._snapshot.take(timed)
        if self._log is not None:
            folder = self._trainer.folder
            with self._disk(folder.steps):
                self._log.flush()
            save_checkpoint(folder.checkpoints, progress.step, tensors, state, keep=self._config.keep_checkpoints)
        self._accelerator.wait_for_everyone()

    def _disk(self, path: Path) -> AbstractContextManager[None]:
        return disk_errors(path, self._trainer.folder.checkpoints)

    def _result(self) -> FitResult:
        from safetensors.torch import load_file

        progress = self._progress
        assert progress.best_epoch is not None
        assert progress.best_step is not None
        self._model.eval()
        path = best_weights_path(self._trainer.folder.checkpoints, progress.best_step)
        check(path.is_file(), "the best weights of the run", f"no file {path}", "restore it from a copy, or run again")
        metrics = [
            {name: value for name, value in row.items() if name not in _RESERVED}
            for row in (progress.history[progress.best_epoch - 1], progress.history[-1])
        ]
        return FitResult(
            best_epoch=progress.best_epoch,
            best=metrics[0],
            last=metrics[1],
            history=progress.history,
            seconds=progress.seconds + time.perf_counter() - self._started,
            best_weights=full_state(self._model, load_file(path)),
            steps=progress.step,
        )
