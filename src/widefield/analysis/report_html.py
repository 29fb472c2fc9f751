"""The building blocks of a report's page; all text that comes in is escaped here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from widefield.analysis.explorer import DECADES
from widefield.analysis.report_image import gradient


def section(key: str, title: str, *parts: str) -> str:
    """Return a section with a heading; `parts` are HTML."""
    return f'<section id="{key}" aria-labelledby="{key}-title">\n<h2 id="{key}-title">{title}</h2>\n' + (
        "\n".join(part for part in parts if part) + "\n</section>"
    )


def caption(text: str) -> str:
    """Return a paragraph that says what one sees."""
    return f'<p class="caption">{escape(text)}</p>'


def cell(text: str, *small: str) -> str:
    """Return the content of a table cell: a figure, and lines that qualify it below."""
    return escape(text) + "".join(f"<small>{escape(line)}</small>" for line in small if line)


def breakable(name: str) -> str:
    """Return a name that may be broken after dots, slashes and underscores."""
    return re.sub(r"([./_]+)", r"\1<wbr>", escape(name))


def table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 0) -> str:
    """Return a table that scrolls within the page where it is too wide.

    Args:
        title: What it shows.
        headings: Of the columns, made by `cell`.
        rows: Cells made by `cell`; the first, made by `breakable`, of each row names it.
        text_columns: How many columns after the first hold words, not figures.
    """
    head = "".join(
        f'<th scope="col"{_kind(index, text_columns)}>{heading}</th>' for index, heading in enumerate(headings)
    )
    body = "\n".join(f"<tr>{_row(row, text_columns)}</tr>" for row in rows)
    label = escape(title, quote=True)
    return (
        f'<div class="scroller" role="region" tabindex="0" aria-label="{label}"><table>\n'
        f"<caption><span>{escape(title)}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(row: Sequence[str], text_columns: int) -> str:
    first, *rest = row
    return f'<th scope="row">{first}</th>' + "".join(
        f"<td{_kind(index, text_columns)}>{content}</td>" for index, content in enumerate(rest, 1)
    )


def _kind(column: int, text_columns: int) -> str:
    return ' class="text"' if 1 <= column <= text_columns else ""


def figure(
    picture: str,
    description: str,
    title: str,
    small: Sequence[str],
    overlay: str = "",
    ratio: float = 1,
    *,
    is_pixelated: bool = False,
) -> str:
    """Return a picture with words below it.

    Args:
        picture: Its data: address.
        description: For those who do not see it.
        title: Below it.
        small: Lines below the title.
        overlay: HTML above the picture.
        ratio: Width by height.
        is_pixelated: Whether each of its pixels shall be seen as a square.
    """
    lines = "".join(f"<small>{breakable(line)}</small>" for line in small)
    kind = ' class="pixelated"' if is_pixelated else ""
    return (
        f'<figure><div class="stack" style="aspect-ratio:{ratio:.4g}">'
        f'<img{kind} src="{picture}" alt="{escape(description, quote=True)}">{overlay}</div>'
        f"<figcaption>{breakable(title)}{lines}</figcaption></figure>"
    )


def tiles(figures: Iterable[str], *, are_small: bool = False) -> str:
    """Return figures side by side."""
    return f'<div class="tiles{" small" if are_small else ""}">\n' + "\n".join(figures) + "\n</div>"


def legend(ticks: Sequence[str], meaning: str) -> str:
    """Return the colour scale with its numbers, evenly spaced, weakest first."""
    numbers = "".join(f"<span>{escape(tick)}</span>" for tick in ticks)
    return (
        f'<div class="legend"><div class="ramp" style="background:{gradient()}"></div>'
        f'<div class="ticks">{numbers}</div>{escape(meaning)}</div>'
    )


def decades_legend(meaning: str) -> str:
    """Return the colour scale of `decades`, whose levels are powers of ten below the strongest pixel."""
    return legend([f"1/{10**step:,}" if step else "1" for step in range(DECADES, -1, -1)], meaning)


def percent(share: float | None) -> str:
    """Return a share in percent with one decimal, or a dash if there is none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def span(low: float | None, high: float | None) -> str:
    """Return an interval of shares in percent, or nothing if there is none."""
    return "" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f} %"


def by(size: Sequence[int]) -> str:
    """Return lengths with a multiplication sign between them."""
    return " × ".join(map(str, size))
