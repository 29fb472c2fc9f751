"""Figures of the performance page; matplotlib is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from widefield._core.files import write_atomically
from widefield.bench.entries import MapEntry
from widefield.bench.summary import geometric_mean
from widefield.ops.backends import PASSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEIGHT_EDGES = (1, 10, 20, 40, 80, 160, 320)
"""Bounds of the groups of map heights, in pixels."""

KERNEL_EDGES = (1, 4, 6, 8, 14, 32, 54, 128)
"""Bounds of the groups of kernel sizes."""


def time_against_kernel_size(entries: Sequence[MapEntry], path: Path) -> None:
    """Draw time over kernel size, a panel for each map and a line for each backend.

    Args:
        entries: Maps of one kernel-size sweep. Lower bounds are open triangles.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    passes = [pass_ for pass_ in PASSES if any(entry.pass_ == pass_ for entry in entries)]
    panels = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(result.name for entry in entries for result in entry.results))
    for panel, pass_ in zip(panels, passes, strict=True):
        of_pass = sorted((e for e in entries if e.pass_ == pass_), key=lambda e: e.problem.kernel_size)
        for index, name in enumerate(names):
            points = [(e.problem.kernel_size[0], r) for e in of_pass if (r := e.result(name)) is not None]
            exact = [(k, r.median_ms) for k, r in points if r.median_ms is not None]
            bounds = [(k, r.at_least_ms) for k, r in points if r.at_least_ms is not None]
            colour = f"C{index}"
            if exact:
                panel.plot(*zip(*exact, strict=True), marker="o", markersize=3, color=colour, label=name)
            if bounds:
                label = None if exact else name
                panel.plot(*zip(*bounds, strict=True), "^", color=colour, markerfacecolor="none", label=label)
        panel.set_title(pass_)
        panel.set_xlabel("kernel size K")
        panel.set_yscale("log")
        panel.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("time in ms (median)")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", title="backend\n(open: at least)")
    _save(figure, path)


def speedup_map(entries: Sequence[MapEntry], path: Path) -> None:
    """Draw the speed-up over the better PyTorch layout by map height and kernel size, a panel for each map.

    Args:
        entries: Maps of a grid. Each cell is the geometric mean of the problems in it, with their number.
        path: PNG file to write.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, len(PASSES), sharey=True)
    image = None
    for panel, pass_ in zip(panels, PASSES, strict=True):
        cells = [
            [_cell(entries, pass_, row, column) for column in _groups(KERNEL_EDGES)] for row in _groups(HEIGHT_EDGES)
        ]
        values = [[geometric_mean(cell) for cell in row] for row in cells]
        image = panel.imshow(values, norm=LogNorm(0.5, 32), cmap="viridis", origin="lower", aspect="auto")
        for i, row in enumerate(cells):
            for j, cell in enumerate(row):
                if cell:
                    mean = geometric_mean(cell)
                    colour = "black" if mean > 6 else "white"
                    panel.text(j, i, f"{mean:.1f}x\n{len(cell)}", ha="center", va="center", fontsize=8, color=colour)
        panel.set_title(pass_)
        panel.set_xticks(range(len(KERNEL_EDGES) - 1), [_span(group) for group in _groups(KERNEL_EDGES)], rotation=45)
        panel.set_yticks(range(len(HEIGHT_EDGES) - 1), [_span(group) for group in _groups(HEIGHT_EDGES)])
        panel.set_xlabel("kernel size K (longer side)")
    panels[0].set_ylabel("map height H in pixels")
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="speed-up over the better PyTorch layout")
    _save(figure, path)


def _groups(edges: Sequence[int]) -> list[tuple[int, int]]:
    return list(pairwise(edges))


def _span(group: tuple[int, int]) -> str:
    low, high = group
    return f"{low} to {high - 1}"


def _cell(entries: Sequence[MapEntry], pass_: str, heights: tuple[int, int], kernels: tuple[int, int]) -> list[float]:
    return [
        entry.speedup_over_torch
        for entry in entries
        if entry.pass_ == pass_
        and heights[0] <= entry.problem.height < heights[1]
        and kernels[0] <= max(entry.problem.kernel_size) < kernels[1]
        and math.isfinite(entry.speedup_over_torch)
    ]


def _save(figure: Figure, path: Path) -> None:
    metadata = {"Software": ""}
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=110, metadata=metadata))
