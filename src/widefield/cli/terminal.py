"""The terminal: what is printed is shown as it is, since names of classes, files and models may hold anything."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from widefield._core.plain_text import visible

_OURS = "\n\t"


class Terminal(Console):
    """A console without markup, on which characters that would act are seen as escapes.

    Line ends are left as they are; text that others gave goes through `visible` before it becomes part of a line.

    Args:
        stderr: Write to the standard error.
        quiet: Write nothing.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the renderable of a string, of a cell of a table, too."""
        return super().render_str(visible(text, _OURS), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments of anything that is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, _OURS))


class VisibleFormatter(logging.Formatter):
    """Formats log records on one line each, as safely."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line; a traceback that follows it keeps its lines."""
        return visible(super().formatMessage(record))


def description() -> TextColumn:
    """Return the column with the description of a task as it is."""
    return TextColumn("{task.description}", markup=False)


def progress_bar(console: Console, *, counts: bool = False) -> Progress:
    """Return a bar that goes away at the end.

    Args:
        console: Where to draw.
        counts: Show how many are done of how many, in place of percent.
    """
    middle: ProgressColumn = MofNCompleteColumn() if counts else TaskProgressColumn()
    return Progress(description(), BarColumn(), middle, TimeRemainingColumn(), console=console, transient=True)


def styled(text: object, style: str) -> Text:
    """Return text in a style such as "bold"; our own lines with markup are made of such parts."""
    return Text(str(text), style=style)
