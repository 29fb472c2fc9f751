"""One run of the training loop: everything that exists only while a model is being trained."""

from __future__ import annotations

import copy
import functools
import math
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from widefield._core.errors import RunError
from widefield.engine.activation_monitor import activation_monitor
from widefield.engine.batch_stream import stream
from widefield.engine.checkpoint_state import check_position, understood
from widefield.engine.checkpointing import (
    disk_errors,
    has_checkpoint,
    read_best_weights,
    read_checkpoint,
    save_checkpoint,
    what_is_kept,
    write_best_weights,
)
from widefield.engine.devices import seed_everything
from widefield.engine.ema import ModelEma
from widefield.engine.extensions import Extensions
from widefield.engine.fit_result import FitResult
from widefield.engine.float32_modules import compute_in_float32
from widefield.engine.gradient_step import GradientStep
from widefield.engine.interruption import StopSignals
from widefield.engine.loss_record import LossRecord
from widefield.engine.metrics_log import MetricsLog
from widefield.engine.model_state import full_state, load_state, unique_state
from widefield.engine.module_selection import select_modules
from widefield.engine.optim import make_scheduler
from widefield.engine.protocol import RunContext
from widefield.engine.random_state import restore_rng_state
from widefield.engine.sharding import move_optimizer, shard, whole, without_sync
from widefield.engine.skipped_steps import SkippedSteps
from widefield.engine.snapshot import Progress, Snapshot
from widefield.engine.sync_batch_norm import convert_sync_batch_norm
from widefield.engine.validation import ValidationStoppedError, validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from widefield.engine.trainer import Trainer

_RESERVED = ("epoch", "step", "lr", "train_loss", "skipped", "seconds")
_WRAPPED = ("forward", "_original_forward", "_is_accelerate_prepared")


class TrainingRun:
    """One call of `Trainer.fit`.

    Args:
        trainer: What the run is made of.
        stack: Takes the callbacks that give the model back as it came.
    """

    def __init__(self, trainer: Trainer, stack: ExitStack) -> None:
        self._trainer, self._config = trainer, trainer.config
        self._accelerator, self._task = trainer.accelerator, trainer.task
        accelerator, config = self._accelerator, self._config
        seed_everything(config.seed, accelerator.process_index)
        self._signals = StopSignals(stack, accelerator)
        for handle in compute_in_float32(select_modules(trainer.model, config.float32_modules).values()):
            stack.callback(handle.remove)
        # A sharded run trains a copy, so that the model itself can be validated and given back as it came.
        self._is_sharded = config.sharding == "fsdp" and accelerator.num_processes > 1
        self._model = copy.deepcopy(trainer.model) if self._is_sharded else trainer.model
        if config.sync_batch_norm and accelerator.num_processes > 1:
            stack.callback(convert_sync_batch_norm(self._model).restore)
        self._ema = None if trainer.ema.decay is None else ModelEma(self._model, trainer.ema)
        if self._is_sharded:
            for module in (self._model, *(() if self._ema is None else (self._ema.module,))):
                shard(module, accelerator.device, accelerator.num_processes)
            move_optimizer(trainer.optimizer, trainer.model, self._model)
            stack.callback(move_optimizer, trainer.optimizer, self._model, trainer.model)
        self._scheduler = make_scheduler(trainer.optimizer, trainer.schedule, config.epochs, trainer.steps_per_epoch)
        stack.callback(self._unwrap, {name: vars(self._model)[name] for name in _WRAPPED if name in vars(self._model)})
        wrapped: Any = accelerator.prepare_model(self._model, evaluation_mode=self._is_sharded)
        # accelerate's wrapper scales fp16 losses; otherwise it only searches the import path at every step.
        optimizer: torch.optim.Optimizer = (
            trainer.optimizer
            if accelerator.scaler is None
            else accelerator.prepare_optimizer(trainer.optimizer, device_placement=False)
        )
        limit = config.skip_nonfinite
        self._skipped = None if limit is None else SkippedSteps(limit, self._model, accelerator, self._has_checkpoint)
        self._gradients = GradientStep(
            task=trainer.task,
            called=torch.compile(wrapped) if config.compile else wrapped,
            model=self._model,
            optimizer=optimizer,
            accelerator=accelerator,
            config=config,
            without_sync=functools.partial(without_sync if self._is_sharded else accelerator.no_sync, wrapped),
            skipped=self._skipped,
        )
        self._losses = LossRecord(self._has_checkpoint)
        self._monitor = activation_monitor(config)
        own = () if self._monitor is None else (self._monitor,)
        self._extensions = Extensions((*trainer.extensions, *own))
        self._snapshot = Snapshot(
            model=self._model,
            optimizer=trainer.optimizer,
            ema=self._ema,
            losses=self._losses,
            skipped=self._skipped,
            extensions=self._extensions,
            accelerator=accelerator,
            origin=trainer.origin,
        )
        self._progress = Progress()
        self._rng: dict[str, Tensor] | None = None
        self._log: MetricsLog | None = None
        self._reporter = trainer.reporter if accelerator.is_main_process else None
        self._stack = stack
        self._started = self._epoch_started = time.perf_counter()

    def _unwrap(self, before: Mapping[str, Any]) -> None:
        for name in _WRAPPED:
            vars(self._model).pop(name, None)
        vars(self._model).update(before)
        self._model.zero_grad(set_to_none=True)
        self._accelerator.free_memory()

    def go(self, checkpoint: Path | None) -> FitResult:
        """Train from `checkpoint`, or from the start."""
        self._extensions.started(self._context(), self._stack)
        steps_csv = None if checkpoint is None else self._take_up(checkpoint)
        progress, epochs = self._progress, self._config.epochs
        if self._accelerator.is_main_process:
            with self._disk(self._trainer.folder.path):
                self._log = MetricsLog(
                    self._trainer.folder,
                    progress.history,
                    progress.step,
                    tensorboard=self._config.tensorboard,
                    wandb=self._config.wandb,
                    counts_skipped=self._skipped is not None,
                    kept=steps_csv,
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

    def _take_up(self, checkpoint: Path) -> dict[str, int] | None:
        """Set the run to a checkpoint, and return what it knows of `steps.csv`."""
        tensors, state = read_checkpoint(checkpoint)
        with understood(checkpoint):
            self._progress, self._rng = self._snapshot.restore(tensors, state)
        progress = self._progress
        length, size = len(self._trainer.loader), self._config.accumulate_steps
        check_position(progress.step, progress.epoch, progress.batch, length, size)
        if progress.best_step is not None:
            # Now rather than after the last epoch.
            read_best_weights(self._trainer.folder.checkpoints, progress.best_step, progress.best_crc32)
        self._scheduler.step_update(progress.step)
        return state.get("steps_csv")

    def _context(self) -> RunContext:
        return RunContext(
            model=self._model,
            optimizer=self._trainer.optimizer,
            ema=None if self._ema is None else self._ema.module,
            steps_per_epoch=self._trainer.steps_per_epoch,
            epochs=self._config.epochs,
            rank=self._accelerator.process_index,
            world_size=self._accelerator.num_processes,
            is_compiled=self._config.compile,
        )

    def _train_epoch(self) -> None:
        progress, every = self._progress, self._config.checkpoint_every_steps
        self._model.train()
        if self._rng is not None and progress.batch == len(self._trainer.loader):
            # Stopped between the last step of an epoch and its validation: there is no batch to restore it at.
            restore_rng_state(self._rng)
            self._rng = None
        batches = self._batches()
        try:
            while progress.batch < len(self._trainer.loader):
                self._step(batches)
                ends = progress.batch == len(self._trainer.loader)
                if self._signals.is_agreed(progress.step, at_once=ends):
                    self._save()
                    raise self._signals.outcome(progress.step)
                if every is not None and progress.step % every == 0 and not ends:
                    self._save()
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def _batches(self) -> Iterator[Any]:
        """Return the rest of the epoch's batches, with the random state as it was at the checkpoint."""
        rng, self._rng = self._rng, None
        return stream(self._trainer.loader, self._progress.epoch, self._progress.batch, rng, self._loader_failed)

    def _loader_failed(self, error: RunError, batch: int | None) -> RunError:
        """Return what to raise, the run being kept if it is between two steps and that takes no other process."""
        if batch == self._progress.batch and self._progress.step and self._accelerator.num_processes == 1:
            self._save()
        kept = what_is_kept(self._trainer.folder.checkpoints)
        return RunError(f"{error} {kept[0].upper()}{kept[1:]}.")

    def _step(self, batches: Iterator[Any]) -> None:
        progress, config = self._progress, self._config
        size = min(config.accumulate_steps, len(self._trainer.loader) - progress.batch)
        progress.lr = lr = float(max(group["lr"] for group in self._trainer.optimizer.param_groups))
        with nullcontext() if self._monitor is None else self._monitor.naming_culprits():
            loss, is_skipped = self._gradients.run(batches, size, progress.step + 1, lr)
            progress.step += 1
            progress.batch += size
            if not is_skipped:
                self._losses.add(progress.step, lr, size, loss)
                if self._monitor is not None:
                    # At once: after an update with it, every module is not finite.
                    self._losses.read(self._accelerator)
        if not is_skipped:
            if self._ema is not None:
                self._ema.update(self._model, progress.step)
            self._extensions.after_step(progress.step)
        self._gradients.clear()
        self._scheduler.step_update(progress.step)
        last = progress.step == config.epochs * self._trainer.steps_per_epoch
        if progress.step % config.log_every_steps == 0 or last:
            self._losses.read(self._accelerator)
            self._report_step(lr)

    def _report_step(self, lr: float) -> None:
        mean = self._losses.take_interval()
        skipped = 0 if self._skipped is None else self._skipped.take_interval()
        if mean is None and skipped:
            mean = math.nan
        if mean is None or self._log is None:
            return
        with self._disk(self._trainer.folder.steps):
            self._log.log_step(self._progress.step, mean, lr, skipped)
        if self._reporter is not None:
            self._reporter.step_done(self._progress.epoch + 1, self._progress.step, mean, lr)

    def _end_epoch(self) -> None:
        progress = self._progress
        self._losses.read(self._accelerator)
        metrics = self._evaluate()
        skipped = {} if self._skipped is None else {"skipped": self._skipped.take_epoch()}
        now = time.perf_counter()
        row = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "lr": progress.lr,
            "train_loss": self._losses.take_epoch(),
            **skipped,
            **metrics,
            **self._extensions.metrics({*_RESERVED, *metrics}),
            "seconds": progress.epoch_seconds + now - self._epoch_started,
        }
        progress.epoch, progress.batch = progress.epoch + 1, 0
        progress.history.append(row)
        is_best = self._is_best(metrics)
        if is_best:
            progress.best_epoch, progress.best_step, progress.best_crc32 = progress.epoch, progress.step, None
        progress.epoch_seconds, self._epoch_started = 0.0, now
        if self._log is not None:
            with self._disk(self._trainer.folder.metrics):
                self._log.log_epoch(progress.history)
            if is_best:
                checkpoints = self._trainer.folder.checkpoints
                progress.best_crc32 = write_best_weights(checkpoints, progress.step, unique_state(self._evaluated))
        self._save()
        if self._reporter is not None:
            self._reporter.epoch_done(progress.epoch, row, is_best and bool(metrics))
        if self._signals.is_agreed(progress.step, at_once=True):
            raise self._signals.outcome(progress.step)

    @property
    def _followed(self) -> nn.Module:
        """What is validated: the average of the weights, or the weights."""
        return self._model if self._ema is None or not self._trainer.ema.evaluate else self._ema.module

    @property
    def _evaluated(self) -> nn.Module:
        return self._trainer.model if self._is_sharded else self._followed

    def _gather(self, source: nn.Module) -> None:
        if self._is_sharded:
            load_state(self._trainer.model, {name: whole(value) for name, value in unique_state(source).items()})

    def _evaluate(self) -> dict[str, float]:
        self._gather(self._followed)
        if self._task.monitor is None:
            return {}
        try:
            return validate(self._task, self._evaluated, self._accelerator, self._signals, _RESERVED)
        except ValidationStoppedError:
            self._save()
            raise self._signals.outcome(self._progress.step) from None
        except RunError as error:
            raise self._loader_failed(error, self._progress.batch) from error

    def _is_best(self, metrics: Mapping[str, float]) -> bool:
        best_epoch, monitor = self._progress.best_epoch, self._task.monitor
        if best_epoch is None or monitor is None:
            return True
        score, best = metrics[monitor], self._progress.history[best_epoch - 1][monitor]
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
            state["steps_csv"] = self._log.position()
            save_checkpoint(folder.checkpoints, progress.step, tensors, state, keep=self._config.keep_checkpoints)
        self._accelerator.wait_for_everyone()

    def _has_checkpoint(self) -> bool:
        return has_checkpoint(self._trainer.folder.checkpoints)

    def _disk(self, path: Path) -> AbstractContextManager[None]:
        return disk_errors(path, self._trainer.folder.checkpoints)

    def _result(self) -> FitResult:
        progress = self._progress
        assert progress.best_epoch is not None
        assert progress.best_step is not None
        model = self._trainer.model
        self._gather(self._model)
        model.eval()
        weights = read_best_weights(self._trainer.folder.checkpoints, progress.best_step, progress.best_crc32)
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
            best_weights=full_state(model, weights),
            steps=progress.step,
        )
