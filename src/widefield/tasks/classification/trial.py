"""Training steps as they would be, in a process of their own: what memory and what time they take.

Memory is the peak of a whole process that has done nothing else. On a CPU that is its resident set, interpreter and
libraries included (the kernel's high-water mark, which starts anew with each program, where there is one); on an
accelerator what torch's allocator held, without the driver's own half gigabyte or so. Processes that load images are
not counted. A teacher is, where the data are there, whose classes it has to share. Parameters are whole even where the
run would shard them. Steps run eagerly even where the run would compile them, since compiling takes minutes.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from widefield._core.errors import WidefieldError
from widefield._core.memory import keep_freed_memory
from widefield.data import Batch, ImageSource, Splits, open_splits, train_loader
from widefield.engine import ModelEma, make_optimizer, seed_everything
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.classification.config import RunConfig
from widefield.tasks.classification.distillation import start_distillation
from widefield.tasks.classification.task import ClassificationTask
from widefield.tasks.distillation import DistillationTask

_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
_WARM_UP = 2
"""Steps before a peak is whole: the optimizer's state is there from the second one on."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What training steps of one size took."""

    batch: int
    """Images in a step of one process, before accumulation."""
    steps: int
    """Steps that the times are means of."""
    peak_bytes: int
    step_s: float
    """Forward, backward and update."""
    evaluation_s: float
    """Forward without gradients, for as many images."""
    load_s: float
    """Reading and augmenting the images by one process; 0 where they were drawn instead."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """What to try, and where to stop."""

    sizes: tuple[int, ...]
    """Images in a step, rising."""
    num_classes: int
    device: str
    """Where, such as "cpu" or "cuda:1"."""
    world_size: int = 1
    """Processes of the run: several keep their gradients twice."""
    limit_bytes: int | None = None
    """Stop at the first size that takes more, or that the two before it say would."""
    longest_step_s: float | None = None
    """Stop after the first size whose step takes longer, but not before the second."""
    timed_steps: int = 0
    """Steps to time in the end, at the first size whose step is longer than `longest_step_s`, or else the last."""
    has_data: bool = False
    """Whether the data are there, to be opened before the first step and read for the timed ones; without them a
    teacher is left out."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What was tried."""

    sizes: tuple[Trial, ...]
    """One step of each size, on drawn images; the last may be above the limit, and there is none if memory did not
    suffice for the first."""
    timed: Trial | None
    """The steps that were timed in the end."""

    def predicted_bytes(self, batch: int) -> int:
        """Return the peak of a step of `batch` images, on the line through the two largest sizes."""
        return predicted_bytes(self.sizes, batch)


def run_trials(config: RunConfig, plan: TrialPlan) -> Trials:
    """Take training steps of rising size in a new process.

    Args:
        config: The run; its batch is replaced by the sizes of the plan.
        plan: What to try.

    Returns:
        What they took.

    Raises:
        InputError: If the settings of the run cannot work.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, config, plan))
    process.start()
    there.close()
    sizes: list[Trial] = []
    timed: Trial | None = None
    try:
        while True:
            try:
                told = here.recv()
            except EOFError:
                return Trials(sizes=tuple(sizes), timed=timed)
            if isinstance(told, Exception):
                raise told
            if isinstance(told, Trials):
                timed = told.timed
            else:
                sizes.append(told)
    finally:
        here.close()
        process.terminate()
        process.join()


def predicted_bytes(trials: Sequence[Trial], batch: int) -> int:
    """Return the peak of a step of `batch` images, on the line through the last two trials."""
    last = trials[-1]
    if len(trials) == 1:
        return last.peak_bytes
    before = trials[-2]
    slope = max(0.0, (last.peak_bytes - before.peak_bytes) / (last.batch - before.batch))
    return round(last.peak_bytes + slope * (batch - last.batch))


def _work(connection: Connection, config: RunConfig, plan: TrialPlan) -> None:
    for name in _LAUNCHER:
        os.environ.pop(name, None)
    try:
        for trial in _trials(config, plan):
            connection.send(trial)
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except WidefieldError as error:
        connection.send(error)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            connection.send(RuntimeError(str(error).splitlines()[0]))
    finally:
        connection.close()


def _trials(config: RunConfig, plan: TrialPlan) -> Iterator[Trial | Trials]:
    keep_freed_memory()
    splits = open_splits(config.data) if plan.has_data else None
    step = _Step(config, plan, splits)
    trials: list[Trial] = []
    for size in plan.sizes:
        if plan.limit_bytes is not None and len(trials) > 1 and predicted_bytes(trials, size) > plan.limit_bytes:
            break
        try:
            trials.append(step.trial(size, 1, _drawn(config, size, plan.num_classes)))
        except ValueError as error:
            # BatchNorm has no statistics of one image where its map is one pixel.
            if size > 1 or "more than 1 value per channel" not in str(error):
                raise
            continue
        yield trials[-1]
        if plan.limit_bytes is not None and trials[-1].peak_bytes > plan.limit_bytes:
            break
        if plan.longest_step_s is not None and len(trials) > 1 and trials[-1].step_s > plan.longest_step_s:
            break
    if not trials or plan.timed_steps == 0:
        return
    longest = math.inf if plan.longest_step_s is None else plan.longest_step_s
    size = next((trial.batch for trial in trials if trial.step_s > longest), trials[-1].batch)
    batches = _drawn(config, size, plan.num_classes) if splits is None else _read(config, splits.train, size)
    yield Trials(sizes=(), timed=step.trial(size, plan.timed_steps, batches, warm_up=0))


class _Step:
    """Model, teacher, optimizer and average, as a run would have them."""

    def __init__(self, config: RunConfig, plan: TrialPlan, splits: Splits | None) -> None:
        self._config, self._trainer = config, config.trainer
        self._device = torch.device(plan.device)
        seed_everything(config.trainer.seed)
        self._model: nn.Module = make_classifier(replace(config.model, weights=None), plan.num_classes)
        self._loss: Callable[[nn.Module, Batch], Tensor] = _cross_entropy
        if splits is not None and config.distillation.teacher is not None:
            distillation = start_distillation(
                config.distillation,
                self._model,
                classes=splits.train.classes,
                data=config.data,
                device=self._device,
                channels_last=self._trainer.channels_last,
            )
            task = ClassificationTask(None, plan.num_classes, config.augmentation.label_smoothing)
            self._loss = DistillationTask(task, distillation.teacher, config.distillation).loss
            self._model = distillation.model
        self._model.to(self._device)
        if self._trainer.channels_last:
            self._model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._optimizer = make_optimizer(self._model, config.optimizer)
        self._ema = None if config.ema.decay is None else ModelEma(self._model, config.ema)
        self._parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        copies = sum(parameter.numel() * parameter.element_size() for parameter in self._parameters)
        self._buckets = copies if plan.world_size > 1 else 0
        self._done = 0

    def trial(self, size: int, steps: int, batches: Iterator[Batch], warm_up: int = _WARM_UP) -> Trial:
        for _ in range(warm_up):
            self._take(next(batches))
        load = step = 0.0
        for _ in range(steps):
            begin = self._now()
            batch = next(batches)
            loaded = self._now()
            self._take(batch)
            load, step = load + loaded - begin, step + self._now() - loaded
        peak = self._peak_bytes() + self._buckets
        begin = self._now()
        self._look(batch)
        evaluation = self._now() - begin
        return Trial(
            batch=size,
            steps=steps,
            peak_bytes=peak,
            step_s=step / steps,
            evaluation_s=evaluation,
            load_s=load / steps,
        )

    def _take(self, batch: Batch) -> None:
        self._done += 1
        self._model.train()
        moved = Batch(self._moved(batch.images), batch.targets.to(self._device), batch.indices)
        with self._autocast():
            loss = self._loss(self._model, moved)
        loss.backward()
        if self._trainer.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._trainer.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._ema is not None:
            self._ema.update(self._model, self._done)

    @torch.no_grad()
    def _look(self, batch: Batch) -> None:
        self._model.eval()
        with self._autocast():
            self._model(self._moved(batch.images))

    def _moved(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self._trainer.channels_last else torch.preserve_format
        return images.to(self._device, memory_format=layout)

    def _autocast(self) -> torch.autocast:
        precision = self._trainer.precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        return torch.autocast(self._device.type, dtype, enabled=precision != "no")

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()

    def _peak_bytes(self) -> int:
        return _resident_peak() if self._device.type == "cpu" else torch.accelerator.max_memory_reserved(self._device)


def _cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.images).float(), batch.targets)


def _drawn(config: RunConfig, size: int, num_classes: int) -> Iterator[Batch]:
    side = config.data.image_size
    batch = Batch(torch.randn(size, 3, side, side), torch.arange(size) % num_classes, torch.arange(size))
    while True:
        yield batch


def _read(config: RunConfig, source: ImageSource, size: int) -> Iterator[Batch]:
    data = replace(config.data, batch_size=size, workers=0)
    loader = train_loader(source, data, config.augmentation, seed=config.trainer.seed)
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def _resident_peak() -> int:
    # The kernel's count for this program alone; getrusage() would hand down the parent's from before exec.
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = cast("int", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if sys.platform == "darwin" else peak * 1024
