"""The section of a report's page on shape bias."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from widefield.analysis.report_html import breakable, caption, cell, percent, section, span, table
from widefield.analysis.shape_bias_reference import HUMANS

if TYPE_CHECKING:
    from widefield.analysis.report import Report
    from widefield.analysis.shape_bias import ShapeBias

_MARKS = 6
"""Kinds of marks that the page's styles have."""

_Judged = tuple[int, str, "ShapeBias"]
"""Which mark, whose it is, and what it shows."""


def shape_bias(report: Report) -> str:
    """Return the shares of shape decisions, as a chart and a table; nothing where none were measured."""
    judged = [
        (index % _MARKS, subject.name, subject.shape_bias)
        for index, subject in enumerate(report.subjects)
        if subject.shape_bias is not None
    ]
    if not judged:
        return ""
    headings = (
        cell("model"),
        cell("shape bias", "95 % interval"),
        cell("mean of categories", "%"),
        cell("shape accuracy", "% of images"),
        cell("texture accuracy", "% of images"),
        cell("images", "decisions"),
    )
    key = "".join(f'<li><span class="dot model-{mark}"></span>{escape(name)}</li>' for mark, name, _ in judged)
    guessing = [name for _, name, bias in judged if _named(bias) <= bias.chance]
    return section(
        "shape-bias",
        "Shape or texture",
        caption(
            "Images with the shape of one category and the texture of another. Shape bias is the share of shape among "
            "the answers that name one of the two; an answer that names neither does not count. Left out are images "
            "without a conflict, and those with a cue that a network has no class for."
        ),
        f'<ul class="key">{key}</ul>',
        _chart(judged),
        caption(
            "A mark for each category of shape and network, a line for the shape bias of each network, dashed that of "
            f"humans ({percent(HUMANS.shape_fraction)}; {HUMANS.source}). Left: always texture. Right: always shape."
        ),
        table("Cue-conflict images", headings, map(_row, judged)),
        caption(
            f"No more often than by guessing did {', '.join(guessing)} name one of the two cues: such a shape bias "
            "says nothing."
        )
        if guessing
        else "",
    )


def _named(bias: ShapeBias) -> float:
    """The share of images of which one of the two cues was named."""
    return bias.overall.shape_accuracy + bias.overall.texture_accuracy


def _row(judged: _Judged) -> tuple[str, ...]:
    _, name, bias = judged
    overall = bias.overall
    left_out = bias.equal_pairs + bias.uncovered
    return (
        breakable(name),
        cell(percent(overall.shape_fraction), span(*overall.interval) if overall.interval else ""),
        cell(percent(bias.category_mean)),
        cell(percent(overall.shape_accuracy)),
        cell(percent(overall.texture_accuracy)),
        cell(
            str(overall.images),
            f"{overall.shape_decisions} shape, {overall.texture_decisions} texture",
            f"{left_out} more left out" if left_out else "",
        ),
    )


def _chart(judged: Sequence[_Judged]) -> str:
    categories = sorted({category for _, _, bias in judged for category in bias.by_shape})
    lines = _line("reference", HUMANS.shape_fraction) + "".join(
        _line(f"model-{mark}", bias.overall.shape_fraction) for mark, _, bias in judged
    )
    axis = "".join(f'<span style="left:{place}%">{place} %</span>' for place in (0, 50, 100))
    rows = "".join(
        f'<span>{escape(category)}</span><span class="track">{lines}{_marks(judged, category)}</span>'
        for category in categories
    )
    return (
        '<div class="chart" role="img" aria-label="Share of shape decisions in each category">'
        f'<span></span><span class="track axis">{axis}</span>{rows}</div>'
    )


def _marks(judged: Sequence[_Judged], category: str) -> str:
    # Each network at a height of its own, so that equal shares stay apart.
    found = [(place, mark, name, bias.by_shape.get(category)) for place, (mark, name, bias) in enumerate(judged, 1)]
    return "".join(
        f'<span class="dot model-{mark}" style="left:{counted.shape_fraction:.2%};top:{place / (len(judged) + 1):.0%}" '
        f'title="{escape(f"{name}, {category}: {percent(counted.shape_fraction)} shape", quote=True)}"></span>'
        for place, mark, name, counted in found
        if counted is not None and counted.shape_fraction is not None
    )


def _line(kind: str, fraction: float | None) -> str:
    return "" if fraction is None else f'<i class="mean {kind}" style="left:{fraction:.2%}"></i>'
