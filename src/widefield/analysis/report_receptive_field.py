"""The section of a report's page on effective receptive fields."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from widefield.analysis.explorer import decades, shrink
from widefield.analysis.report_html import (
    breakable,
    by,
    caption,
    cell,
    decades_legend,
    figure,
    percent,
    section,
    span,
    table,
    tiles,
)
from widefield.analysis.report_image import map_image

if TYPE_CHECKING:
    from widefield.analysis.area import Area
    from widefield.analysis.receptive_field import ReceptiveField
    from widefield.analysis.report import Report, Subject

_LONGEST_SIDE = 256
_SQUARES = (0.2, 0.5, 0.99)
"""Thresholds whose squares are drawn on the maps."""


def receptive_fields(report: Report) -> str:
    """Return the maps and the table of area ratios."""
    thresholds = report.subjects[0].receptive_field.thresholds
    headings = (
        cell("model"),
        *(cell(f"r({threshold:g})", "% of image") for threshold in thresholds),
        cell("diameter", "px"),
    )
    shown = ", ".join(f"{threshold:g}" for threshold in _SQUARES if threshold in thresholds)
    return section(
        "receptive-field",
        "Effective receptive field",
        caption(
            "How much each pixel of the input can move one output of the feature map, on average over the images: "
            "positive gradients of the positive outputs at that location. It is what the network is sensitive to, not "
            "where it looks for a class: an effective receptive field is no class activation map."
        ),
        tiles(map(_figure, report.subjects)),
        decades_legend("mean gradient, relative to the strongest pixel of the map (log scale)"),
        caption(
            f"White squares: the smallest ones around the location that hold more than t = {shown} of log10(1 + mean "
            "gradient), the scale of the published area ratios."
        ),
        table("Area ratio r(t) of such squares", headings, map(_row, report.subjects)),
        caption(
            "r(t) is the share of the image under the smallest centred square that holds more than t of it; "
            "larger is wider, and a uniform map has r(t) = t. In small print: the 95 % interval over images, and the "
            "side of the square. A dash: no square within the image is enough. The size of the gradients enters "
            "through the logarithm, that of the input through the ratio: compare at one size, and trained with "
            "trained. The diameter is four standard deviations of the mean gradient along an axis, and knows no "
            "logarithm."
        ),
    )


def _row(subject: Subject) -> tuple[str, ...]:
    field = subject.receptive_field
    diameter = field.effective_diameter_px
    return (
        breakable(subject.name),
        *(
            cell(percent(area.ratio), span(area.low, area.high), f"{area.side_px} px" if area.side_px else "")
            for area in field.ratios
        ),
        cell("-" if math.isnan(diameter) else f"{diameter:.0f}"),
    )


def _figure(subject: Subject) -> str:
    field = subject.receptive_field
    height, width = field.input_size
    return figure(
        map_image(decades(shrink(field.mean, _LONGEST_SIDE))),
        f"Effective receptive field of {subject.name}: heat map over an input of {by(field.input_size)} pixels",
        subject.name,
        (f"{subject.weights}; {by(field.input_size)} px",),
        "".join(_square(field, area) for area in field.ratios if area.threshold in _SQUARES),
        width / height,
    )


def _square(field: ReceptiveField, area: Area) -> str:
    if area.side_px is None:
        return ""
    (height, width), (row, column), side = field.input_size, field.centre_px, area.side_px
    top, left = (row - side // 2) / height, (column - side // 2) / width
    box = f"top:{top:.3%};left:{left:.3%};width:{side / width:.3%};height:{side / height:.3%}"
    return f'<i class="square" style="{box}"><b>{area.threshold:g}</b></i>'
