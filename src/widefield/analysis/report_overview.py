"""The section of a report's page that says what was looked at."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from widefield.analysis.report_html import breakable, by, caption, cell, section, table

if TYPE_CHECKING:
    from widefield.analysis.report import Report, Subject


def overview(report: Report) -> str:
    """Return what was looked at, and how to do it again."""
    headings = (
        cell("model"),
        cell("weights"),
        cell("layer looked at"),
        cell("input", "px"),
        cell("feature map", "locations"),
        cell("images"),
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return section(
        "looked-at",
        "What was looked at",
        table("Networks, and where in them", headings, map(_row, report.subjects), text_columns=2),
        caption(
            f"Images: {', '.join(report.images)}. Networks with branches are looked at merged, as they are used. "
            f"Made on {report.date} with {versions}. The same page again:"
        ),
        f'<code class="command">{escape(report.command)}</code>',
    )


def _row(subject: Subject) -> tuple[str, ...]:
    field = subject.receptive_field
    return (
        breakable(subject.name),
        breakable(subject.weights),
        cell(field.layer),
        cell(by(field.input_size)),
        cell(by(field.output_size)),
        cell(str(field.images), f"{field.skipped} more left out: no finite gradients" if field.skipped else ""),
    )
