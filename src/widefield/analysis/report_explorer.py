"""The section of a report's page in which a location is chosen on a photo."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from widefield.analysis.report_html import breakable, caption, decades_legend, section

if TYPE_CHECKING:
    from widefield.analysis.report import Report


def explorer(report: Report) -> str:
    """Return the photo and places for the maps, which the page's script fills; nothing without photos."""
    if not report.photos:
        return ""
    first = report.subjects[0].explored[0]
    rows, columns = len(first.rows), len(first.columns)
    height, width = first.levels.shape[-2:]
    ratio = f"aspect-ratio:{width / height:.4g}"
    buttons = "".join(
        f'<button type="button" data-photo="{index}" aria-pressed="false">'
        f'<img alt="{escape(photo.name, quote=True)}"></button>'
        for index, photo in enumerate(report.photos)
    )
    maps = "".join(
        f'<figure data-model="{index}"><div class="stack" style="{ratio}"><img class="photo" alt="">'
        f'<canvas width="{width}" height="{height}" role="img"></canvas><i class="marker"></i></div>'
        f'<figcaption>{breakable(subject.name)}<small class="told"></small></figcaption></figure>'
        for index, subject in enumerate(report.subjects)
    )
    return section(
        "explorer-section",
        "What reaches a location",
        caption(
            "Choose a location on the photo: click or tap it, or focus the photo and use the arrow keys. The map of "
            "each network shows the pixels that can move its output there, in this one photo."
        ),
        "<noscript><p>Choosing needs JavaScript; it is part of this file.</p></noscript>",
        '<div class="explorer" id="explorer"><div class="place">',
        f'<div class="thumbnails" role="group" aria-label="Photos">{buttons}</div>' if len(report.photos) > 1 else "",
        f'<div class="stack picker" id="picker" tabindex="0" role="application" style="{ratio}" '
        f'aria-label="Photo: the arrow keys choose one of {rows} by {columns} locations" aria-describedby="readout">'
        f'<img class="photo" alt=""><div class="lines" style="--rows:{rows};--columns:{columns}"></div>'
        '<i class="marker"></i></div>',
        '<p id="readout" role="status"></p></div>',
        f'<div class="tiles" style="--across:{_across(len(report.subjects))}">{maps}</div>',
        '<div class="scale"><label class="strength">Strength of the maps'
        '<input type="range" id="strength" min="0" max="100" value="90"></label>',
        decades_legend("contribution of a pixel, relative to the strongest one of the map (log scale)"),
        "</div></div>",
        caption(
            "White frames mark the location. Strided convolutions sample the top left of theirs, so small maps lie "
            "there. The maps say what a network is sensitive to, not which class it sees. Each has its own strongest "
            "pixel: their forms can be compared, their strengths cannot."
        ),
    )


def _across(count: int) -> int:
    """How many maps stand side by side: up to three, and four in two rows of two."""
    return 2 if count == 4 else min(count, 3)
