"""``widefield tune``: measure this machine, so that the fastest backend is chosen on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from widefield._core.checks import check
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal


@dataclass(frozen=True, kw_only=True)
class TuneArguments:
    """Time every CPU backend on drawn problems and keep the fitted costs for this processor and torch version."""

    problems: int = 160
    """How many problems to draw; the default takes about five minutes."""
    budget_s: float = 0.3
    """Seconds of timing for each of the three maps of a problem."""
    seed: int = 0
    """Of the draw."""
    output: Path | None = None
    """Write the table here instead of the cache, where it would be used from then on."""
    record: Path | None = None
    """Also write the measurements, as a benchmark record."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    a = parse(TuneArguments, words, command="tune")
    check(a.problems >= 8, "at least 8 problems", f"{a.problems}", "leave --problems out for a good fit")
    check(a.budget_s > 0, "a positive number of seconds", f"{a.budget_s}", "leave --budget-s out")
    for path in (a.output, a.record):
        check(
            path is None or (path.parent.is_dir() and not path.exists()),
            "a path for a file that is not there yet, in a folder that is",
            str(path),
            "choose another",
        )
    from widefield.bench import calibration, records
    from widefield.ops import tuning

    console = Terminal()
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("measuring", total=a.problems)
        record = calibration.measure(
            calibration.drawn_problems(a.problems, seed=a.seed),
            budget_s=a.budget_s,
            progress=lambda done: progress.update(task, completed=done),
        )
    if a.record is not None:
        records.write(record, a.record)
    table = calibration.fit(record)
    if a.output is not None:
        a.output.write_text(table.as_json(), encoding="utf-8")
    path = a.output or tuning.keep(table)
    error = calibration.typical_error(table, record)
    console.print(f"typical error of a predicted time: {error:.0%}", soft_wrap=True)
    use = "" if a.output else " (used from now on; delete it to undo)"
    console.print(f"costs of this machine: {path}{use}", soft_wrap=True)
