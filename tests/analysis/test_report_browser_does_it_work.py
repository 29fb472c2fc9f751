from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.browser import open_browser, open_page
from support.drawn_report import EVIL, explored, report, subject

from widefield.analysis.report import Subject, write_report

SIZES = [pytest.param(1280, 900, id="desktop"), pytest.param(390, 844, id="phone")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    finer = explored(25, output=8)
    wide = subject("stages.with_a.very_long.name_that_has_to.be_broken_somewhere", 25)
    subjects: list[Subject] = [
        subject("narrow", 4, photos=2),
        Subject(**{**vars(wide), "explored": (finer, finer)}),
        subject(EVIL, 12, photos=2),
    ]
    write_report(path, report(*subjects, photos=2))
    return path


def overlays(page: Any) -> list[str]:
    """What the canvases show, once nothing moves any more."""
    read = "[...document.querySelectorAll('figure canvas')].map((canvas) => canvas.toDataURL())"
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    page.wait_for_timeout(100)
    return page.evaluate(read)


def click(page: Any, selector: str, row: int, column: int, count: int = 4) -> None:
    """Click the middle of a cell of the grid."""
    element = page.locator(selector).first
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    x, y = ((place + 0.5) / count for place in (column, row))
    element.click(position={"x": x * box["width"], "y": y * box["height"]})


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_click_shows_what_reaches_the_place(chromium: Any, path: Path, width: int, height: int) -> None:
    with open_page(chromium, path, width=width, height=height) as page:
        readout = page.locator("#readout")
        start = overlays(page)
        assert readout.inner_text() == "Row 3 of 4, column 3 of 4"
        click(page, "#picker", 0, 1)
        assert readout.inner_text() == "Row 1 of 4, column 2 of 4"
        first = overlays(page)
        click(page, "#picker", 3, 0)
        assert readout.inner_text() == "Row 4 of 4, column 1 of 4"
        second = overlays(page)
        for shown in zip(start, first, second, strict=True):
            assert len(set(shown)) == 3
        assert len(set(second)) == 3
        told = page.locator("figure .told").all_inner_texts()
        assert told[0].startswith("half of what reaches it comes from ")
        assert told[1].endswith("of the pixels (output 8, 2 of 8 × 8)")


def test_a_map_is_strongest_where_it_was_clicked(chromium: Any, path: Path) -> None:
    with open_page(chromium, path, width=1280, height=900) as page:
        click(page, "#picker", 0, 3)
        overlays(page)
        brightest = page.evaluate(
            """() => {
              const canvas = document.querySelector('figure canvas');
              const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
              let [best, place] = [-1, null];
              for (let index = 0; index < pixels.length; index += 4) {
                const light = pixels[index] + pixels[index + 1] + pixels[index + 2] + pixels[index + 3];
                if (light > best) [best, place] = [light, index / 4];
              }
              return [Math.floor(place / canvas.width) / canvas.height, (place % canvas.width) / canvas.width];
            }"""
        )
        assert 0 <= brightest[0] < 0.25
        assert 0.75 <= brightest[1] < 1


def test_a_click_on_a_map_counts_as_well(chromium: Any, path: Path) -> None:
    with open_page(chromium, path, width=1280, height=900) as page:
        click(page, "#explorer figure .stack", 1, 0)
        assert page.locator("#readout").inner_text() == "Row 2 of 4, column 1 of 4"


def test_the_keyboard_is_enough(chromium: Any, path: Path) -> None:
    with open_page(chromium, path, width=1280, height=900) as page:
        before = overlays(page)
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "picker":
                break
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Photo: the arrow keys")
        for key in ("ArrowUp", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
        assert page.locator("#readout").inner_text() == "Row 2 of 4, column 1 of 4"
        assert all(old != new for old, new in zip(before, overlays(page), strict=True))


def test_another_photo_can_be_chosen_and_the_maps_made_weaker(chromium: Any, path: Path) -> None:
    with open_page(chromium, path, width=1280, height=900) as page:
        photo = page.locator("#picker img")
        before = photo.get_attribute("src")
        page.locator("button[data-photo='1']").click()
        assert photo.get_attribute("src") != before
        assert page.locator("button[data-photo='1']").get_attribute("aria-pressed") == "true"
        page.locator("#strength").fill("20")
        assert page.locator("figure canvas").first.evaluate("canvas => canvas.style.opacity") == "0.2"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [*SIZES, pytest.param(320, 640, id="small phone")])
def test_it_fits_the_screen_and_shows_something(
    chromium: Any, path: Path, tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    with open_page(chromium, path, width=width, height=height, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = page.evaluate(
            """() => [...document.querySelectorAll('body *')].filter((element) =>
                 !element.closest('.scroller') && element.getBoundingClientRect().right > innerWidth + 0.5
               ).map((element) => element.outerHTML.slice(0, 100))"""
        )
        assert outside == []
        overlays(page)
        file = tmp_path / "screen.png"
        page.screenshot(path=file, full_page=True)
        screen = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        assert screen.width == width
        colours = screen.getcolors(screen.width * screen.height)
        assert colours is not None
        assert len(colours) > 1000
        paper: Any = max(colours)[1]
        assert (sum(paper) > 600) == (scheme == "light")


def test_a_page_that_asks_for_something_else_is_noticed(chromium: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<img src='missing.png'><script>console.log('told')</script>", encoding="utf-8")
    with (
        pytest.raises(AssertionError, match=r"request: .*missing\.png"),
        open_page(chromium, page, width=320, height=240) as opened,
    ):
        opened.wait_for_timeout(100)


@pytest.mark.parametrize(("needs", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_browser_is_skipped_only_where_it_may_be(
    monkeypatch: pytest.MonkeyPatch, needs: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("WIDEFIELD_NEEDS_BROWSER", needs)
    with pytest.raises(outcome, match="none of chromium, "), open_browser():
        pass
