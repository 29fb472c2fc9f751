"""The page of a report: HTML with its styles, script and pictures inside."""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from widefield.analysis.report_cost import costs
from widefield.analysis.report_explorer import explorer
from widefield.analysis.report_kernels import kernels
from widefield.analysis.report_overview import overview
from widefield.analysis.report_receptive_field import receptive_fields
from widefield.analysis.report_shape_bias import shape_bias

if TYPE_CHECKING:
    from widefield.analysis.report import Report

_SECTIONS = (overview, receptive_fields, explorer, shape_bias, kernels, costs)


def compose(report: Report, data: str) -> str:
    """Put the page together.

    Args:
        report: What it shows.
        data: The JSON for its script and for other programs, safe within a script element.

    Returns:
        The HTML.
    """
    sections = [text for text in (part(report) for part in _SECTIONS) if text]
    headings = [re.search(r'<section id="([\w-]+)".*\n<h2[^>]*>(.*)</h2>', text) for text in sections]
    links = "".join(f'<a href="#{match[1]}">{match[2]}</a>' for match in headings if match)
    count = len(report.subjects)
    body = "\n".join(sections)
    style, script = _asset("page.css"), _asset("page.js")
    size = (len(body) + len(data) + len(style) + len(script)) / 1e6
    return Template(_asset("page.html")).substitute(
        title=escape(report.title),
        lead=escape(f"{count} network{'s' if count != 1 else ''}, looked into on {report.date}"),
        links=links,
        sections=body,
        style=style,
        script=script,
        data=data,
        footer=f"Made with widefield. Everything is in this one file ({size:.1f} MB); it asks no network for anything.",
    )


def _asset(name: str) -> str:
    return files("widefield.analysis").joinpath("report_assets", name).read_text(encoding="utf-8")
