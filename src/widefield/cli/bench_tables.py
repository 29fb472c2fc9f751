"""Benchmark records as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from widefield.bench.entries import Result
from widefield.bench.records import Record
from widefield.bench.summary import summarise
from widefield.cli.terminal import styled


def print_maps(console: Console, record: Record) -> None:
    """Print every map of every problem: times, errors, the choice, or why a backend cannot run."""
    problem = None
    for entry in record.maps:
        if entry.problem != problem:
            problem = entry.problem
            console.print(styled(problem.problem(), "bold"))
            if entry.runs_as != problem.kernel_size:
                console.print(f"  timed as {entry.runs_as[0]}x{entry.runs_as[1]}: the other taps meet no pixel")
        table = Table(box=None, padding=(0, 2), show_header=False)
        for result in entry.results:
            mark = styled("chosen", "green") if result.name == entry.chosen else ""
            table.add_row(f"  {entry.pass_}", result.name, time_text(result), _note(result), mark)
        console.print(table)
        against = f"{entry.speedup_over_torch:.2f} times as fast as the better PyTorch layout"
        console.print(
            f"  {'':<12} {entry.chosen}: {against}, {entry.chosen_over_best:.2f} times the best backend's time"
        )


def print_summary(console: Console, record: Record) -> None:
    """Print how the dispatcher does over all problems of a record."""
    table = Table()
    for heading in ("map", "problems", "speed-up over PyTorch", "least", "over the best backend", "worst", "wrong"):
        table.add_column(heading, justify="left" if heading == "map" else "right")
    summaries = summarise(record.maps)
    for s in summaries:
        ratios = (s.mean_speedup, s.smallest_speedup, s.mean_over_best, s.worst_over_best)
        table.add_row(s.pass_, str(s.problems), *(f"{ratio:.2f}" for ratio in ratios), str(s.wrong))
    console.print(table)
    for s in summaries:
        console.print(
            f"{s.pass_}: least speed-up at {s.slowest.problem.problem()} ({s.slowest.chosen})", soft_wrap=True
        )
        console.print(
            f"{s.pass_}: worst choice at {s.worst_chosen.problem.problem()} ({s.worst_chosen.chosen})", soft_wrap=True
        )
    if not record.is_complete:
        console.print(f"partial: {record.problems} of {record.planned} problems")


def print_models(console: Console, record: Record) -> None:
    """Print throughput, and its ratio to the last network's."""
    table = Table()
    for heading in ("network", "form", "depthwise on", "time", "images/s", "ratio", "error"):
        table.add_column(heading, justify="right" if heading in ("images/s", "ratio") else "left")
    last = record.models[-1].images_per_s
    for entry in record.models:
        ratio = f"{entry.images_per_s / last:.2f}" if last else ""
        cells = (time_text(entry.result), f"{entry.images_per_s:.2f}", ratio, _note(entry.result))
        table.add_row(entry.model, entry.form, entry.backend, *cells)
    console.print(table)
    first = record.models[0]
    console.print(
        f"{first.mode.replace('_', ' ')}, batch {first.batch}, {first.image_size} px, {first.dtype}, {first.layout}, "
        f"{record.environment.device}, {record.environment.threads} threads; ratio to the last row",
        soft_wrap=True,
    )


def time_text(result: Result) -> str:
    """Return a candidate's time in words."""
    if result.median_ms is not None and result.q10_ms is not None and result.q90_ms is not None:
        return f"{result.median_ms:.3f} ms ({result.q10_ms:.3f} to {result.q90_ms:.3f}, {result.rounds} rounds)"
    return f"at least {result.at_least_ms:.3f} ms" if result.at_least_ms is not None else ""


def _note(result: Result) -> str | Text:
    if result.refusals:
        return f"cannot run: {'; '.join(result.refusals)}"
    if result.is_wrong:
        wrong = result.relative_error if result.relative_error is not None else result.failure
        return styled(f"WRONG {wrong}", "red")
    if result.failure:
        return styled(result.failure, "red")
    return "" if result.relative_error is None else f"error {result.relative_error:.0e}"
