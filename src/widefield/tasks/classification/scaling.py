"""A recipe for another batch: what has to change with it, and by which rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

from widefield._core.checks import check
from widefield.tasks.classification.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Change:
    """One field that was rescaled."""

    field: str
    """Its path, such as ``optimizer.lr``."""
    before: str
    after: str
    rule: str
    """Why, in a few words."""


def scale_to_batch(
    config: RunConfig, batch: int, accumulate_steps: int | None = None
) -> tuple[RunConfig, tuple[Change, ...]]:
    """Return a run with `batch` images behind each optimizer update that is as near to the given one as is known.

    The epochs stay, those of the warm-up too: both take as many more updates as each holds fewer images. With the
    factor k = new batch / old batch,

    * learning rates (peak, start of the warm-up, end of the cosine) are multiplied by k, for SGD (Goyal et al., 2017,
      section 2.1) and AdamW alike (as in DeiT, Swin and ConvNeXt: Touvron et al., 2021, section 6);
    * the decay of the average of the weights becomes decay^k, so that it spans as many images (Busbridge et al., 2023,
      "How to Scale Your EMA", section 2);
    * sparse masks change every (updates / k), so that they change as often in an epoch.

    Weight decay, drop path and augmentation stay.

    Args:
        config: The run.
        batch: Images behind one update, over all processes and accumulated batches.
        accumulate_steps: Batches of one update; None keeps the run's, or 1 if they cannot share the new batch.

    Returns:
        The new run and what differs, without the fields that came out equal.

    Raises:
        InputError: If the batch is not positive, or not a multiple of the accumulated batches.
    """
    check(batch > 0, "a batch of at least 1 to scale to", f"{batch}", "give the images of one update, such as 256")
    steps = accumulate_steps
    if steps is None:
        steps = config.trainer.accumulate_steps if batch % config.trainer.accumulate_steps == 0 else 1
    check(
        batch % steps == 0,
        f"a batch that {steps} accumulated batches make up",
        f"{batch} images",
        "use a multiple of --trainer.accumulate-steps",
    )
    factor = batch / config.update_batch
    schedule, optimizer, sparsity = config.schedule, config.optimizer, config.sparsity
    if sparsity is not None and sparsity.update_every is not None:
        sparsity = replace(sparsity, update_every=max(1, round(sparsity.update_every / factor)))
    decay = config.ema.decay
    scaled = replace(
        config,
        data=replace(config.data, batch_size=batch // steps),
        trainer=replace(config.trainer, accumulate_steps=steps),
        optimizer=replace(optimizer, lr=optimizer.lr * factor),
        schedule=replace(schedule, warmup_lr=schedule.warmup_lr * factor, min_lr=schedule.min_lr * factor),
        ema=replace(config.ema, decay=None if decay is None else decay**factor),
        sparsity=sparsity,
    )
    return scaled, _changes(config, scaled)


def _changes(before: RunConfig, after: RunConfig) -> tuple[Change, ...]:
    images, accumulated = "images of one batch", "batches of one update"
    linear, span, often = "in proportion to the batch", "spans as many images", "as often in an epoch"
    fields: list[tuple[str, float | None, float | None, str]] = [
        ("data.batch_size", before.data.batch_size, after.data.batch_size, images),
        ("trainer.accumulate_steps", before.trainer.accumulate_steps, after.trainer.accumulate_steps, accumulated),
        ("optimizer.lr", before.optimizer.lr, after.optimizer.lr, linear),
        ("schedule.warmup_lr", before.schedule.warmup_lr, after.schedule.warmup_lr, linear),
        ("schedule.min_lr", before.schedule.min_lr, after.schedule.min_lr, linear),
        ("ema.decay", before.ema.decay, after.ema.decay, span),
    ]
    if before.sparsity is not None and after.sparsity is not None:
        every = before.sparsity.update_every, after.sparsity.update_every
        fields.append(("sparsity.update_every", *every, often))
    return tuple(
        Change(field=name, before=f"{old:.6g}", after=f"{new:.6g}", rule=rule)
        for name, old, new, rule in fields
        if old is not None and new is not None and old != new
    )
