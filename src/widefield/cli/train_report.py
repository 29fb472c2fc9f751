"""What ``widefield train`` tells before a run: recipes, what was rescaled, the plan for memory, the dry run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from widefield._core.plain_text import visible
from widefield.cli.terminal import styled
from widefield.tasks.classification import RunConfig
from widefield.tasks.classification.estimate import Estimate
from widefield.tasks.classification.plan import MemoryPlan
from widefield.tasks.classification.scaling import Change


def print_recipes(console: Console, groups: Mapping[str, Sequence[Callable[[], RunConfig]]]) -> None:
    """Print the name and the first line of every recipe, family by family."""
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for index, (family, functions) in enumerate(groups.items()):
        if index:
            table.add_row()
        table.add_row(styled(family, "bold"))
        for function in functions:
            table.add_row(f"  {function.__name__}", (function.__doc__ or "").strip().splitlines()[0])
    console.print(table)
    console.print("\nwidefield train RECIPE --dry-run shows what one would do; --help lists every field.")


def print_changes(console: Console, changes: Sequence[Change], old: int, new: int) -> None:
    """Print what another batch has changed, and how the updates change with it."""
    console.print(styled(f"scaled from {old:,} to {new:,} images an update", "bold"))
    table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
    for change in changes:
        table.add_row(f"  {change.field}", f"{change.before} -> {change.after}", change.rule)
    times = f"{old / new:.4g} times as many updates"
    table.add_row("  epochs, warm-up epochs", "as they were", f"{times} in each")
    console.print(table)


def print_plan(console: Console, plan: MemoryPlan, batch: int) -> None:
    """Print how a run keeps within its limit of memory.

    Args:
        console: Where to.
        plan: The plan.
        batch: Images behind one update.
    """
    processes = "" if plan.world_size == 1 else f" x {plan.world_size} processes"
    steps = f"{plan.accumulate_steps} accumulated step{'' if plan.accumulate_steps == 1 else 's'}"
    console.print(styled(f"memory limit {plan.limit_bytes / 1e9:g} GB", "bold"))
    console.print(
        f"  {plan.micro_batch:,} images a step{processes} x {steps} = {batch:,} an update, "
        f"{'with' if plan.grad_checkpointing else 'without'} gradient checkpointing; "
        f"measured peak {plan.peak_bytes / 1e9:.2f} GB (loader processes not counted)",
        soft_wrap=True,
    )
    tried = ", ".join(f"{trial.batch}: {trial.peak_bytes / 1e9:.2f}" for trial in plan.trials)
    console.print(f"  tried, images: GB  {tried}", soft_wrap=True)


def print_estimate(console: Console, config: RunConfig, estimate: Estimate, device: str) -> None:
    """Print the resolved config and what the run would be."""
    console.print(config.to_yaml(), soft_wrap=True)
    costs, counts, trial = estimate.costs, estimate.counts, estimate.trial
    rows = [
        ("parameters", f"{costs.parameters:,}; merged {costs.merged_parameters:,}"),
        (
            "MACs",
            f"{_macs(costs.macs)}; merged {_macs(costs.merged_macs)}, "
            f"for one image of {config.data.image_size}x{config.data.image_size}",
        ),
        ("data", estimate.data if counts is not None else f"missing. {estimate.data}"),
    ]
    if counts is None:
        rows.append(("classes", f"{estimate.num_classes:,} assumed in place of the data's"))
        rows.append(("updates", "unknown without the data"))
    else:
        test = "" if counts.test_images is None else f", {counts.test_images:,} test"
        validation = "no" if counts.validation_images is None else f"{counts.validation_images:,}"
        rows += [
            ("images", f"{counts.train_images:,} train, {validation} validation{test}"),
            ("classes", f"{estimate.num_classes:,}"),
            (
                "updates",
                f"{counts.updates:,}: {config.trainer.epochs:,} epochs of {counts.updates_per_epoch:,}, "
                f"warm-up {counts.warmup_updates:,}; {config.update_batch:,} images in each",
            ),
        ]
    if estimate.missing_weights is not None:
        rows.append(("weights", f"missing. {estimate.missing_weights}"))
    if estimate.missing_teacher is not None:
        rows.append(("teacher", f"not counted. {estimate.missing_teacher}"))
    if trial is None or estimate.peak_bytes is None:
        rows.append(("memory", f"not enough on {device} for two steps of two images"))
    else:
        how = "measured" if estimate.is_measured else "on the line through smaller steps"
        rows += [
            (
                "memory",
                f"{estimate.peak_bytes / 1e9:.2f} GB for steps of {estimate.micro_batch:,} images on {device} ({how})",
            ),
            ("time", _time(estimate)),
        ]
    table = Table(box=None, show_header=False, padding=(0, 2), pad_edge=False)
    for row in rows:
        table.add_row(*map(visible, row))
    console.print(table)
    console.print("dry run: nothing was written")


def _time(estimate: Estimate) -> str:
    trial = estimate.trial
    assert trial is not None
    images = "real images" if estimate.counts is not None else "random images, since the data are missing"
    measured = f"{trial.steps} steps of {trial.batch:,} {images}: {trial.step_s:.3g} s each"
    if estimate.counts is not None:
        measured += f", {trial.load_s:.3g} s to load by one process"
    if estimate.seconds is None:
        return measured
    return f"about {_duration(estimate.seconds)} ({measured})"


def _macs(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
