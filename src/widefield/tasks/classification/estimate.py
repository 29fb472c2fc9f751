"""What a run would be, without running it: sizes, counts, and memory and time from some real steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from widefield._core.errors import InputError
from widefield.data import Splits, open_splits, train_loader
from widefield.reparam import fold
from widefield.tasks.classification.card import find_checkpoint, make_classifier
from widefield.tasks.classification.config import ModelConfig, RunConfig
from widefield.tasks.classification.run import check_image_size
from widefield.tasks.classification.trial import Trial, TrialPlan, Trials, run_trials
from widefield.tasks.distillation import DistillationConfig

STEPS = 10
"""Timed steps."""

_LONG_STEP_S = 0.5
_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a network is made of and what one image costs."""

    parameters: int
    merged_parameters: int
    macs: int
    """Multiply-accumulates of the training form."""
    merged_macs: int


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Images and optimizer updates of a run."""

    train_images: int
    validation_images: int | None
    test_images: int | None
    batches_per_epoch: int
    """Batches of each process."""
    updates_per_epoch: int
    updates: int
    warmup_updates: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would be."""

    data: str
    """What was found, or why nothing was."""
    missing_weights: str | None
    """Why the weights to start from cannot be used, if so."""
    missing_teacher: str | None
    """Why the teacher is not part of memory and time, if so."""
    num_classes: int
    costs: Costs
    counts: Counts | None
    """None where the data are missing."""
    trial: Trial | None
    """The steps that were timed; None where memory did not suffice for one."""
    micro_batch: int
    """Images in one step of one process of the run."""
    peak_bytes: int | None
    """Of one process at that micro-batch."""
    is_measured: bool
    """Whether a step of that size was taken; the peak is on the line through two smaller ones otherwise."""
    seconds: float | None
    """Of the whole run, in proportion to the images; None without data or steps."""


def estimate(config: RunConfig, *, device: str, world_size: int = 1) -> Estimate:
    """Describe a run after taking some of its steps in a process of its own; nothing is written.

    The steps rise in size up to that of the run, or to the first that takes half a second, but to the second at least.
    Of the last size, or the first that takes so long, ten are timed, on real images where they are there.

    Args:
        config: The run.
        device: Where the steps are taken.
        world_size: Processes of the run.

    Returns:
        The estimate.

    Raises:
        InputError: If the run could not start for a reason other than missing data, weights or teacher.
    """
    splits: Splits | None = None
    try:
        splits = open_splits(config.data)
    except InputError as error:
        found = str(error)
    else:
        found = splits.description
    classes = _CLASSES if splits is None else len(splits.train.classes)
    counts = None if splits is None else _counts(config, splits, world_size)
    size = max(1, config.data.batch_size // world_size)
    missing_teacher = _missing_teacher(config, splits)
    trials = run_trials(
        config if missing_teacher is None else replace(config, distillation=DistillationConfig()),
        TrialPlan(
            sizes=_sizes(size),
            num_classes=classes,
            device=device,
            world_size=world_size,
            longest_step_s=_LONG_STEP_S,
            timed_steps=STEPS,
            has_data=splits is not None,
        ),
    )
    trial = trials.timed
    return Estimate(
        data=found,
        missing_weights=None if config.model.weights is None else _missing(config.model.weights),
        missing_teacher=missing_teacher,
        num_classes=classes,
        costs=count_costs(config.model, classes, config.data.image_size),
        counts=counts,
        trial=trial,
        micro_batch=size,
        peak_bytes=_peak_bytes(trials, size),
        is_measured=bool(trials.sizes) and trials.sizes[-1].batch == size,
        seconds=None if trial is None or counts is None else _seconds(config, counts, trial, world_size),
    )


def count_costs(config: ModelConfig, num_classes: int, image_size: int) -> Costs:
    """Count parameters and multiply-accumulates of a network, in training form and merged, without computing.

    Args:
        config: The network.
        num_classes: Outputs.
        image_size: Height and width of the image, in pixels.

    Raises:
        InputError: If the network does not take the size.
    """
    with torch.device("meta"):
        model = make_classifier(replace(config, weights=None, grad_checkpointing=False), num_classes).eval()
    check_image_size(model, image_size)
    parameters, macs = _parameters(model), _macs(model, image_size)
    fold(model.to_empty(device="cpu"))
    merged = _parameters(model)
    return Costs(
        parameters=parameters, merged_parameters=merged, macs=macs, merged_macs=_macs(model.to("meta"), image_size)
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _macs(model: nn.Module, image_size: int) -> int:
    counter: Any = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    return counter.get_total_flops() // 2


def _counts(config: RunConfig, splits: Splits, world_size: int) -> Counts:
    loader = train_loader(
        splits.train, config.data, config.augmentation, seed=config.trainer.seed, world_size=world_size
    )
    per_epoch = math.ceil(len(loader) / config.trainer.accumulate_steps)
    return Counts(
        train_images=len(splits.train),
        validation_images=None if splits.validation is None else len(splits.validation),
        test_images=None if splits.test is None else len(splits.test),
        batches_per_epoch=len(loader),
        updates_per_epoch=per_epoch,
        updates=per_epoch * config.trainer.epochs,
        warmup_updates=round(config.schedule.warmup_epochs * per_epoch),
    )


def _sizes(largest: int) -> tuple[int, ...]:
    """Return the powers of two below a number of images, and that number."""
    sizes = [size for size in (2**power for power in range(1, largest.bit_length() + 1)) if size < largest]
    return (*sizes, largest)


def _peak_bytes(trials: Trials, size: int) -> int | None:
    if not trials.sizes:
        return None
    timed = 0 if trials.timed is None else trials.timed.peak_bytes
    return max(trials.predicted_bytes(size), timed)


def _seconds(config: RunConfig, counts: Counts, trial: Trial, world_size: int) -> float:
    workers = config.data.workers

    def spent(computing: float) -> float:
        """Seconds for an image: the processes that load work beside the one that computes."""
        waiting = computing + trial.load_s if workers == 0 else max(computing, trial.load_s / workers)
        return waiting / trial.batch

    images = counts.batches_per_epoch * config.data.batch_size / world_size
    validation = (counts.validation_images or 0) / world_size
    return config.trainer.epochs * (images * spent(trial.step_s) + validation * spent(trial.evaluation_s))


def _missing_teacher(config: RunConfig, splits: Splits | None) -> str | None:
    if config.distillation.teacher is None:
        return None
    if splits is None:
        return "The data are missing, whose classes it has to share."
    return _missing(config.distillation.teacher)


def _missing(checkpoint: str) -> str | None:
    try:
        find_checkpoint(Path(checkpoint), "branched")
    except InputError as error:
        return str(error)
    return None
