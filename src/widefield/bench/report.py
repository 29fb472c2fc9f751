"""docs/performance.md and its figures, made of the records in benchmarks/results and of nothing else.

python -m widefield.bench.report [--check]
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from widefield._core.errors import InputError
from widefield._core.files import write_text_atomically
from widefield.bench.entries import ModelEntry, Result
from widefield.bench.environment import Environment
from widefield.bench.plots import speedup_map, time_against_kernel_size
from widefield.bench.records import Record, is_record, validated
from widefield.bench.summary import summarise

logger = logging.getLogger(__name__)

RESULTS, PAGE, IMAGES = Path("benchmarks/results"), Path("docs/performance.md"), Path("docs/images")
RESOURCES = "triton_resources.json"

INTRODUCTION = """# Performance

Made by `python -m widefield.bench.report` from the records in `benchmarks/results`; do not edit it by hand.

How it is measured: every candidate is first compared with the definition in float64, and a wrong one is not timed.
Candidates take turns within one process; times are medians with the 0.1 and 0.9 quantiles. A candidate whose time for
one image is already three times the best time for the whole batch is not run in full: its time for that image stands as
"at least". "PyTorch" is the faster of its two memory formats, changes of format included, on kernels from which the
taps that meet no pixel have been cut already. Compare times within a table only: machines differ, and so do hours.
"""

COMMANDS = {
    "operator": "widefield bench op N C H W K -o benchmarks/results/NAME.json",
    "kernel_sizes": "widefield bench sweep K N C H W -o benchmarks/results/NAME.json",
    "grid": "widefield bench sweep grid -o benchmarks/results/NAME.json",
    "models": "widefield bench model NAME --against OTHER -o benchmarks/results/NAME.json",
}

TITLES = {
    "operator": "Single convolutions",
    "kernel_sizes": "Time against kernel size",
    "grid": "All layers of the published networks",
    "models": "Networks",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """One record file."""

    name: str
    """Path from the folder of results, without its ending."""
    record: Record

    @property
    def image(self) -> str:
        """Name of its figure."""
        return self.name.replace("/", "_") + ".png"


def find_records(folder: Path) -> list[Source]:
    """Read every benchmark record below a folder, sorted by name; other JSON files are passed over.

    Raises:
        InputError: If one is damaged, or of another schema.
    """
    found: list[Source] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError("JSON files among the results", f"{path}, which is none", "write it anew") from error
        if is_record(values):
            name = path.relative_to(folder).with_suffix("").as_posix()
            found.append(Source(name=name, record=validated(values, str(path))))
    return found


def page(sources: Sequence[Source], resources: dict[str, Any] | None = None) -> str:
    """Return the text of the page.

    Args:
        sources: The records.
        resources: What `triton_resources.json` holds, if it is there.
    """
    parts = [INTRODUCTION]
    for kind in TITLES:
        parts.append(f"## {TITLES[kind]}\n")
        of_kind = [source for source in sources if source.record.kind == kind]
        if not of_kind:
            parts.append(f"No record yet: `{COMMANDS[kind]}`\n")
        parts += [_SECTIONS[kind](source) for source in of_kind]
    if resources is not None:
        parts.append("## Compiled Triton kernels\n")
        parts.append(_resources(resources))
    return "\n".join(parts)


def draw(sources: Sequence[Source], folder: Path) -> None:
    """Draw the figures that `page` links."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if source.record.kind == "kernel_sizes":
            time_against_kernel_size(source.record.maps, folder / source.image)
        elif source.record.kind == "grid":
            speedup_map(source.record.maps, folder / source.image)


def read_resources(folder: Path) -> dict[str, Any] | None:
    """Return the record of compiled Triton kernels, if there is one."""
    path = folder / RESOURCES
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _operator(source: Source) -> str:
    rows: list[tuple[str, ...]] = [("problem", "map", "backend", "ms", "0.1 to 0.9 quantile", "relative error", "")]
    for entry in source.record.maps:
        for result in entry.results:
            if result.refusals:
                continue
            error = "" if result.relative_error is None else f"{result.relative_error:.0e}"
            mark = "chosen" if result.name == entry.chosen else "wrong" if result.is_wrong else ""
            rows.append(
                (str(entry.problem.problem()), entry.pass_, result.name, _time(result), _quantiles(result), error, mark)
            )
    return f"{_heading(source)}\n{_table(rows)}"


def _kernel_sizes(source: Source) -> str:
    names = list(dict.fromkeys(r.name for entry in source.record.maps for r in entry.results if not r.refusals))
    rows: list[tuple[str, ...]] = [("K", "map", *names, "chosen", "speed-up over PyTorch")]
    for entry in source.record.maps:
        times = [_time(entry.result(name)) for name in names]
        ratio = f"{entry.speedup_over_torch:.2f}"
        rows.append((str(entry.problem.kernel_size[0]), entry.pass_, *times, entry.chosen, ratio))
    shape = source.record.maps[0].problem
    words = f"N{shape.batch} C{shape.channels} {shape.height}x{shape.width}, {shape.dtype}; times in ms (medians)."
    figure = f"![time against kernel size](images/{source.image})"
    return f"{_heading(source)}\n{words}\n\n{figure}\n\n{_table(rows)}"


def _grid(source: Source) -> str:
    rows: list[tuple[str, ...]] = [
        (
            "map",
            "problems",
            "speed-up over PyTorch (geometric mean)",
            "least",
            "most",
            "over the best backend",
            "worst",
            "within 5 % of the best",
            "wrong",
        )
    ]
    where: list[str] = []
    for s in summarise(source.record.maps):
        ratios = (s.mean_speedup, s.smallest_speedup, s.largest_speedup, s.mean_over_best, s.worst_over_best)
        rows.append((s.pass_, str(s.problems), *(f"{ratio:.2f}" for ratio in ratios), f"{s.best_chosen}", f"{s.wrong}"))
        where.append(f"* {s.pass_}: least speed-up at {s.slowest.problem.problem()} ({s.slowest.chosen});")
        where.append(f"  worst choice at {s.worst_chosen.problem.problem()} ({s.worst_chosen.chosen}).")
    figure = f"![speed-up by map height and kernel size](images/{source.image})"
    state = (
        ""
        if source.record.is_complete
        else f"Partial: {source.record.problems} of {source.record.planned} problems.\n\n"
    )
    words = "A cell of the figure is the geometric mean of as many problems as its lower number says."
    return f"{_heading(source)}\n{state}{_table(rows)}\n" + "\n".join(where) + f"\n\n{words}\n\n{figure}\n"


def _models(source: Source) -> str:
    rows: list[tuple[str, ...]] = [
        (
            "network",
            "form",
            "mode",
            "depthwise on",
            "batch",
            "px",
            "dtype",
            "layout",
            "compiled",
            "ms",
            "images/s",
            "ratio",
        )
    ]
    for entry in source.record.models:
        first = _rival(source.record, _way(entry))
        ratio = f"{entry.images_per_s / first:.2f}" if first else ""
        mode, is_compiled = entry.mode.replace("_", " "), "yes" if entry.is_compiled else ""
        cells = (entry.model, entry.form, mode, entry.backend, str(entry.batch), str(entry.image_size), entry.dtype)
        rows.append((*cells, entry.layout, is_compiled, _time(entry.result), f"{entry.images_per_s:.1f}", ratio))
    return (
        f"{_heading(source)}\nRatio: to the first network of another kind that ran in the same way.\n\n{_table(rows)}"
    )


def _way(entry: ModelEntry) -> tuple[object, ...]:
    return entry.mode, entry.batch, entry.image_size, entry.dtype, entry.layout, entry.is_compiled


def _rival(record: Record, way: tuple[object, ...]) -> float:
    return next((e.images_per_s for e in record.models if not e.backend and _way(e) == way), 0.0)


_SECTIONS = {"operator": _operator, "kernel_sizes": _kernel_sizes, "grid": _grid, "models": _models}


def _resources(values: dict[str, Any]) -> str:
    kernels: list[dict[str, Any]] = next((v for v in values.values() if isinstance(v, list)), [])
    facts = [f"{name} {value}" for name, value in values.items() if isinstance(value, str | int | float)]
    names = [name for name, value in (kernels[0] if kernels else {}).items() if not isinstance(value, dict | list)]
    rows = [tuple(name.replace("_", " ") for name in names)]
    rows += [tuple(str(kernel.get(name, "")) for name in names) for kernel in kernels]
    return f"Compiled ahead of time, without a GPU: {', '.join(facts)}.\n\n{_table(rows)}"


def _heading(source: Source) -> str:
    return f"### {source.name}\n\n{_machine(source.record.environment)}\n"


def _machine(where: Environment) -> str:
    versions = [f"torch {where.torch}", *([f"Triton {where.triton}"] if where.triton else []), f"Python {where.python}"]
    commit = f"commit {where.commit[:10]}{' with changes' if where.is_dirty else ''}" if where.commit else "no commit"
    threads = f"{where.threads} thread{'s' if where.threads != 1 else ''}"
    return f"{where.device} ({where.capability}), {threads}, {', '.join(versions)}, {commit}, {where.date[:10]}."


def _time(result: Result | None) -> str:
    if result is None:
        return ""
    if result.median_ms is not None:
        return f"{result.median_ms:.3g}"
    return f"at least {result.at_least_ms:.3g}" if result.at_least_ms is not None else ""


def _quantiles(result: Result) -> str:
    if result.q10_ms is None or result.q90_ms is None:
        return ""
    return f"{result.q10_ms:.3g} to {result.q90_ms:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and its figures, or with ``--check`` tell whether the page is what the records give.

    Args:
        arguments: Words after the module's name; those of the process if none are given.

    Returns:
        0, or 1 if ``--check`` finds a page that is not up to date.
    """
    parser = argparse.ArgumentParser(prog="python -m widefield.bench.report")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page would change")
    options = parser.parse_args(arguments)
    sources = find_records(options.root / RESULTS)
    text = page(sources, read_resources(options.root / RESULTS))
    path = options.root / PAGE
    if options.check:
        return 0 if path.is_file() and path.read_text(encoding="utf-8") == text else 1
    draw(sources, options.root / IMAGES)
    write_text_atomically(path, text)
    logger.info("wrote %s from %d records", path, len(sources))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
