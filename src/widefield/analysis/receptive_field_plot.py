"""The figure of effective receptive fields: maps side by side on one scale, their profiles and their area ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from widefield._core.checks import check
from widefield._core.files import write_atomically
from widefield._core.plain_text import figure_text
from widefield.analysis.receptive_field import ReceptiveField, Scale, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4
_MOST = 12
_SQUARE_COLOURS = ("#c9f2ff", "#7fd4ff", "#2f9bff", "#c0ff6b")


def draw_receptive_fields(path: Path, receptive_fields: Sequence[ReceptiveField], scale: Scale = "log") -> None:
    """Draw the map of each field with the squares of its area ratios, the profiles over distance, and a table.

    Every map is divided by its largest value, so that all share one scale of colours. On the scale "log", that of the
    area ratios, it is log10(1 + mean) that is drawn.

    Args:
        path: A new PNG file.
        receptive_fields: At most 12.
        scale: Of maps, squares and table.

    Raises:
        InputError: If the file exists, or there is no field or too many.
    """
    from matplotlib.figure import Figure

    check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
    count = len(receptive_fields)
    check(0 < count <= _MOST, f"1 to {_MOST} receptive fields", f"{count}", "draw fewer")
    columns = min(count, _COLUMNS)
    rows = -(-count // columns)
    size = (max(3.1 * columns, 7.5) + 0.9, 3.6 * rows + 2.9 + 0.24 * (count + 1))
    figure = Figure(figsize=size, layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=(3.6 * rows, 2.9, 0.24 * (count + 1) + 0.1))
    maps, profile, table = parts
    panels = maps.subplots(rows, columns, squeeze=False).flatten()
    image = None
    for panel, field in zip(panels, receptive_fields, strict=False):
        values = scaled(field.mean, scale)
        shown = values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
        image = panel.imshow(shown.numpy(), cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        _squares(panel, field, scale)
        height, width = field.input_size
        title = f"{figure_text(field.name)}, {height} px\n{figure_text(field.weights)}".strip()
        panel.set_title(title, fontsize=9)
        panel.set_xticks(_ticks(width))
        panel.set_yticks(_ticks(height))
        panel.tick_params(labelsize=7)
    for panel in panels[count:]:
        panel.set_visible(False)
    panels[0].set_ylabel("pixels of the input", fontsize=8)
    assert image is not None
    held = ", ".join(f"{100 * threshold:g} %" for threshold in _thresholds(receptive_fields))
    maps.supxlabel(f"squares, from the smallest: the least that hold more than {held} of a map", fontsize=8)
    bar = maps.colorbar(image, ax=panels.tolist(), fraction=0.025)
    drawn = "log10(1 + mean contribution)" if scale == "log" else "mean contribution"
    bar.set_label(f"{drawn}, over its largest", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    _profiles(profile.subplots(), receptive_fields)
    _table(table.subplots(), receptive_fields, scale)
    metadata = {"Software": ""}
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=140, metadata=metadata))


def _squares(panel: Axes, field: ReceptiveField, scale: Scale) -> None:
    from matplotlib.patches import Rectangle

    row, column = field.centre_px
    for index, threshold in enumerate(field.thresholds):
        side = field.area(threshold, scale).side_px
        if side is not None:
            corner = (column - side / 2, row - side / 2)
            colour = _SQUARE_COLOURS[index % len(_SQUARE_COLOURS)]
            panel.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=0.8))


def _ticks(length: int) -> list[int]:
    return [0, length // 2, length - 1]


def _profiles(axes: Axes, receptive_fields: Sequence[ReceptiveField]) -> None:
    for index, field in enumerate(receptive_fields):
        heights = field.radial_profile()
        largest = heights.max().item()
        known = min(field.input_size) // 2
        if largest > 0:
            label = figure_text(
                f"{field.name} ({field.input_size[0]} px{', ' + field.weights if field.weights else ''})"
            )
            style = "-" if index < 10 else "--"
            axes.plot((heights[:known] / largest).tolist(), style, color=f"C{index % 10}", linewidth=1.2, label=label)
    axes.set_yscale("log")
    axes.set_ylim(1e-5, 1.5)
    axes.set_xlabel("distance from the location, pixels", fontsize=8)
    axes.set_ylabel("mean contribution on the circle,\nover its largest", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _table(axes: Axes, receptive_fields: Sequence[ReceptiveField], scale: Scale) -> None:
    thresholds = _thresholds(receptive_fields)
    headings = ["", "layer", "images", *(f"r({100 * threshold:g} %)" for threshold in thresholds), "diameter"]
    rows = [
        [
            figure_text(f"{field.name}, {field.input_size[0]} px"),
            figure_text(field.layer),
            str(field.images),
            *(_percent(field.area(threshold, scale).ratio) for threshold in thresholds),
            "-" if math.isnan(field.effective_diameter_px) else f"{field.effective_diameter_px:.0f} px",
        ]
        for field in receptive_fields
    ]
    axes.axis("off")
    table = axes.table(cellText=[headings, *rows], loc="center", cellLoc="right", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(range(len(headings)))
    for (_, column), cell in table.get_celld().items():
        cell.set_edgecolor("0.8")
        if column < 2:
            cell.set_text_props(ha="left")


def _thresholds(receptive_fields: Sequence[ReceptiveField]) -> list[float]:
    return sorted({threshold for field in receptive_fields for threshold in field.thresholds})


def _percent(ratio: float | None) -> str:
    return "none" if ratio is None else f"{100 * ratio:.1f} %"
