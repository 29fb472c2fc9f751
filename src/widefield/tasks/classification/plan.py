"""A recipe within a limit of memory: micro-batch, accumulation and gradient checkpointing, found on the real device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.classification.config import RunConfig
from widefield.tasks.classification.trial import Trial, TrialPlan, run_trials

ENOUGH = 32
"""Images of a process in one step from which on larger steps are not worth the time that checkpointing costs."""

USABLE = 0.95
"""Share of the limit that a step may take; the rest is for what else a run does: validation, checkpoints, figures."""

_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a run keeps within its limit."""

    micro_batch: int
    """Images in one step of one process."""
    accumulate_steps: int
    """Steps behind one optimizer update."""
    world_size: int
    """Processes."""
    grad_checkpointing: bool
    peak_bytes: int
    """Of one process, measured at that micro-batch on real images."""
    limit_bytes: int
    trials: tuple[Trial, ...]
    """What was tried with this kind of backward pass, the last one possibly above the limit."""


def plan_for_memory(
    config: RunConfig, limit_bytes: int, num_classes: int, *, device: str, world_size: int = 1
) -> MemoryPlan:
    """Find the largest micro-batch that fits, by real training steps of rising size.

    Micro-batches are the divisors of the update's batch, so that accumulation makes it up exactly. Gradient
    checkpointing is used where a step of `ENOUGH` images (or of the whole batch) does not fit without it and a larger
    one does with it. BatchNorm sees the micro-batches.

    Args:
        config: The run, whose data are there; if it checkpoints, only that is tried.
        limit_bytes: For one process; see `widefield.tasks.classification.trial` for what is counted.
        num_classes: Outputs.
        device: Where the steps are taken.
        world_size: Processes of the run.

    Returns:
        The plan.

    Raises:
        InputError: If the processes cannot share the batch, or not even the smallest step fits.
    """
    check(limit_bytes > 0, "a memory limit above 0", f"{limit_bytes / 1e9:g} GB", "give the gigabytes of one process")
    batch = config.update_batch
    check(
        batch % world_size == 0,
        f"a batch that {world_size} processes can share",
        f"{batch} images",
        "use --scale-to-batch with a multiple of the number of processes",
    )
    sizes = _micro_batches(config, batch // world_size)
    usable = round(USABLE * limit_bytes)
    trial_plan = TrialPlan(
        sizes=sizes,
        num_classes=num_classes,
        device=device,
        world_size=world_size,
        limit_bytes=usable,
        has_data=True,
    )
    ways = [True] if config.model.grad_checkpointing else [False, True]
    best: MemoryPlan | None = None
    smallest: Trial | None = None
    for way in ways:
        if way and not _can_checkpoint(config):
            continue
        model = replace(config.model, grad_checkpointing=way)
        trials = run_trials(replace(config, model=model), trial_plan).sizes
        smallest = trials[0] if trials else smallest
        chosen = _largest(replace(config, model=model), trial_plan, trials, 0 if best is None else best.micro_batch)
        if chosen is not None:
            best = MemoryPlan(
                micro_batch=chosen.batch,
                accumulate_steps=batch // world_size // chosen.batch,
                world_size=world_size,
                grad_checkpointing=way,
                peak_bytes=chosen.peak_bytes,
                limit_bytes=limit_bytes,
                trials=trials,
            )
        if best is not None and best.micro_batch >= min(ENOUGH, sizes[-1]):
            break
    if best is None:
        needs = "more than there is" if smallest is None else f"{smallest.peak_bytes / 1e9:.2f} GB"
        images = sizes[0] if smallest is None else smallest.batch
        raise InputError(
            f"a step of {images} image{'' if images == 1 else 's'} of {config.model.name} at "
            f"{config.data.image_size} px to fit into {USABLE:.0%} of {limit_bytes / 1e9:g} GB",
            f"{needs} with gradient checkpointing",
            "raise --memory-limit, or choose a smaller model or --data.image-size",
        )
    return best


def _largest(config: RunConfig, plan: TrialPlan, trials: Sequence[Trial], least: int) -> Trial | None:
    """Return the largest size above `least` that fits on real images in a process that took no other step."""
    assert plan.limit_bytes is not None
    for trial in reversed(trials):
        if trial.peak_bytes <= plan.limit_bytes and trial.batch > least:
            alone = run_trials(config, replace(plan, sizes=(trial.batch,), timed_steps=_STEPS)).timed
            if alone is not None and alone.peak_bytes <= plan.limit_bytes:
                return alone
    return None


def _micro_batches(config: RunConfig, images: int) -> tuple[int, ...]:
    """Return the divisors of a process's images that can be a batch, rising."""
    augmentation = config.augmentation
    is_mixed = augmentation.enabled and bool(augmentation.mixup or augmentation.cutmix)
    sizes = tuple(size for size in range(1, images + 1) if images % size == 0 and not (is_mixed and size % 2))
    check(
        bool(sizes),
        "an even batch on each process for mixup and cutmix",
        f"{images} images",
        "use --scale-to-batch with an even batch, or set --augmentation.mixup and --augmentation.cutmix to 0",
    )
    return sizes


def _can_checkpoint(config: RunConfig) -> bool:
    try:
        with torch.device("meta"):
            make_classifier(replace(config.model, weights=None, grad_checkpointing=True), 2)
    except (AttributeError, AssertionError, NotImplementedError):
        # How a network of timm's says that it cannot: some assert, some have no such method.
        return False
    return True
