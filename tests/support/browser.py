"""A real browser without a window, and pages in it that may not fail at anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start Chromium; where there is none the test is skipped, or fails if WIDEFIELD_NEEDS_BROWSER is 1."""
    program = next((path for path in map(shutil.which, NAMES) if path is not None), None)
    if program is None:
        lacking = f"none of {', '.join(NAMES)} is installed"
        if os.environ.get("WIDEFIELD_NEEDS_BROWSER") == "1":
            pytest.fail(lacking)
        pytest.skip(lacking)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Any, path: Path, *, width: int, height: int, **options: Any) -> Iterator[Any]:
    """Open a file; when the page is left, nothing may have been complained of, asked for or failed to load."""
    troubles: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": height}, **options)
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:80]}"))
    page.on("request", lambda request: troubles.extend(_strange(request.url, path)))
    try:
        page.goto(path.as_uri())
        yield page
        assert not troubles, "; ".join(troubles)
    finally:
        page.close()


def _strange(url: str, path: Path) -> list[str]:
    return [] if url == path.as_uri() or url.startswith("data:") else [f"request: {url[-80:]}"]
