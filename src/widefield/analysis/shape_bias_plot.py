"""The figure of shape bias: categories down the page, from shape to texture across it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from widefield._core.checks import check
from widefield._core.files import write_atomically
from widefield._core.plain_text import figure_text
from widefield.analysis.shape_bias import CueReport
from widefield.analysis.shape_bias_reference import HUMANS, NETWORKS, PublishedBias

_MARKERS = "osD^vPX*<>"
_COLOURS = (
    "#2563a8",
    "#d9722e",
    "#3a8f4d",
    "#8b4fa3",
    "#b8312f",
    "#0f8b8d",
    "#7a5c3e",
    "#d1498b",
    "#6b7a1e",
    "#444444",
)


def draw_shape_bias(
    path: Path, reports: Sequence[CueReport], published: Sequence[PublishedBias] = (HUMANS, NETWORKS[0])
) -> None:
    """Draw the share of shape decisions in each category, with a line for each classifier's overall share.

    The layout is that of Geirhos et al., ICLR 2019, figure 4: shape at the left, texture at the right.

    Args:
        path: A new PNG file.
        reports: One for each classifier, at most 10.
        published: Published shares to draw as thin lines.

    Raises:
        InputError: If the file exists, or there is no classifier or too many.
    """
    from matplotlib.figure import Figure

    check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
    check(0 < len(reports) <= len(_COLOURS), f"1 to {len(_COLOURS)} classifiers", f"{len(reports)}", "draw fewer")
    categories = sorted({category for report in reports for category in report.bias.by_shape})
    row = {category: index for index, category in enumerate(categories)}
    figure = Figure(figsize=(8.6, 2.6 + 0.36 * len(categories)), layout="constrained")
    axes = figure.subplots()
    for index, report in enumerate(reports):
        colour, marker = _COLOURS[index], _MARKERS[index]
        known = [
            (c, each.shape_fraction) for c, each in report.bias.by_shape.items() if each.shape_fraction is not None
        ]
        overall = report.bias.overall.shape_fraction
        label = f"{figure_text(report.name)}: {'no decisions' if overall is None else f'{100 * overall:.1f} % shape'}"
        heights = [row[category] for category, _ in known]
        axes.plot(
            [share for _, share in known],
            heights,
            marker,
            color=colour,
            alpha=0.85,
            label=label,
            clip_on=False,
            zorder=3,
        )
        if overall is not None:
            axes.axvline(overall, color=colour, linewidth=1.6)
    for reference, style in zip(published, ("--", ":", "-.", (0, (1, 4))) * len(published), strict=False):
        text = f"{reference.name}, published, 16 categories: {100 * reference.shape_fraction:.1f} % shape"
        axes.axvline(reference.shape_fraction, color="0.35", linewidth=1.2, linestyle=style, label=text)
    axes.set_xlim(1, 0)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_yticks(range(len(categories)), list(map(figure_text, categories)))
    axes.set_yticks([place + 0.5 for place in range(len(categories) - 1)], minor=True)
    axes.grid(axis="y", which="minor", linestyle=":", alpha=0.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.set(xlabel="fraction of shape decisions", ylabel="category of the shape")
    top = axes.secondary_xaxis("top", functions=(_other_cue, _other_cue))
    top.set_xlabel("fraction of texture decisions")
    for axis in (axes.xaxis, top.xaxis):
        axis.set_ticks([tenth / 10 for tenth in range(11)])
    figure.legend(loc="outside lower center", ncols=1 if len(reports) == 1 else 2, frameon=False)
    metadata = {"Software": ""}
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=140, metadata=metadata))


def _other_cue(share: Any) -> Any:
    return 1 - share
