from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.drawn_report import EVIL, explored, field, report, subject

from widefield._core.errors import InputError
from widefield.analysis.report import Report, write_report
from widefield.analysis.report_image import colours


class Page(HTMLParser):
    """The elements of a page, its words, and its JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        self.close()
        self.data: Any = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.words.append(data)


def write(path: Path, *subjects: Any, photos: int = 1) -> Page:
    write_report(path / "report.html", report(*subjects, photos=photos))
    return Page(path / "report.html")


def picture(address: str) -> Image.Image:
    assert address.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_the_area_ratios_of_the_page_are_those_of_the_result(tmp_path: Path) -> None:
    subjects: list[Any] = [subject("narrow", 5), subject("wide", 8)]
    page = write(tmp_path, *subjects)
    for one, told in zip(subjects, page.data["models"], strict=True):
        areas = told["receptive_field"]["areas"]
        assert areas == [vars(area) for area in one.receptive_field.ratios]
        assert [one.receptive_field.area(area["threshold"]).ratio for area in areas] == [a["ratio"] for a in areas]
        for area in one.receptive_field.ratios:
            assert None not in (area.ratio, area.low, area.high)
            assert f"{100 * area.ratio:.1f} %" in page.words
            assert f"{100 * area.low:.1f} to {100 * area.high:.1f} %" in page.words
    assert page.data["command"] == "widefield report narrow wide --images photos"
    assert page.data["date"] == "2026-01-02"


def test_a_square_that_does_not_fit_is_a_dash(tmp_path: Path) -> None:
    one = replace(subject("flat", 5), receptive_field=replace(field("flat", 5), mean=torch.ones(64, 64).double()))
    page = write(tmp_path, one)
    assert page.data["models"][0]["receptive_field"]["areas"][-1]["ratio"] is None
    assert "-" in page.words


def test_the_squares_are_where_the_result_has_them(tmp_path: Path) -> None:
    one: Any = subject("narrow", 5)
    page = write(tmp_path, one)
    styles = [attributes["style"] or "" for _, attributes in page.elements if attributes.get("class") == "square"]
    assert len(styles) == 3
    for style, threshold in zip(styles, (0.2, 0.5, 0.99), strict=True):
        top, left, width, height = (float(value) / 100 * 64 for value in re.findall(r"([\d.]+)%", style))
        side = one.receptive_field.area(threshold).side_px
        assert (round(width), round(height)) == (side, side)
        assert (round(top + (side - 1) / 2), round(left + (side - 1) / 2)) == one.receptive_field.centre_px


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    evil = replace(subject(EVIL, 8), weights=EVIL)
    content = replace(report(evil), title=EVIL, images=(EVIL,), date=EVIL, versions={EVIL: EVIL}, command=EVIL)
    content = replace(content, photos=tuple(replace(each, name=EVIL) for each in content.photos))
    write_report(tmp_path / "report.html", content)
    page = Page(tmp_path / "report.html")
    assert page.text.count("<script") == 2
    assert "alert(" not in page.text.replace(r"\u003cscript>alert(", "").replace("&lt;script&gt;alert(", "")
    assert page.data["models"][0]["name"] == page.data["models"][0]["weights"] == page.data["command"] == EVIL
    assert page.open == []


def test_nothing_is_fetched_from_anywhere(tmp_path: Path) -> None:
    page = write(tmp_path, subject("one", 8))
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
    style = page.text[page.text.index("<style>") : page.text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes)
    assert (policy or "").startswith("default-src 'none'; img-src data:;")


def test_every_picture_is_described_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    page = write(tmp_path, subject("one", 8), photos=1)
    names = [attributes.get("id") for _, attributes in page.elements]
    assert all("alt" in attributes for tag, attributes in page.elements if tag == "img")
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert len(links) == 6
    assert all((link or "").removeprefix("#") in names for link in links)
    assert len(set(filter(None, names))) == len(list(filter(None, names)))


def test_the_maps_of_the_explorer_are_those_that_were_computed(tmp_path: Path) -> None:
    subjects = [subject("narrow", 5, photos=2), subject("wide", 20, photos=2)]
    explorer = write(tmp_path, *subjects, photos=2).data["explorer"]
    assert (explorer["rows"], explorer["columns"], explorer["map_size"]) == (4, 4, [32, 32])
    for index, one in enumerate(subjects):
        atlas = picture(explorer["photos"][1]["atlases"][index])
        assert atlas.size == (128, 128)
        shown = torch.tensor(list(atlas.tobytes())).view(128, 128)
        for row in range(4):
            for column in range(4):
                part = shown[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
                assert torch.equal(part, one.explored[1].levels[row, column].long())
        coloured: Any = atlas.convert("RGBA").getpixel((5, 40))
        level = int(shown[40, 5])
        assert coloured[:3] == tuple(colours()[level].tolist())
        assert coloured[3] == min(255, 2 * level)
        half = torch.tensor(explorer["photos"][1]["half_shares"][index], dtype=torch.float64)
        torch.testing.assert_close(half, one.explored[1].half_shares, atol=1e-6, rtol=0)


def test_only_what_was_measured_has_a_section(tmp_path: Path) -> None:
    bare = replace(subject("bare", 8, is_full=False), explored=())
    page = write(tmp_path, bare, photos=0)
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page.text)
    assert headings == ["What was looked at", "Effective receptive field"]
    assert page.data["explorer"] is None
    assert page.data["models"][0]["cost"] is None


def test_a_shape_bias_no_better_than_guessing_is_said_to_be_none(tmp_path: Path) -> None:
    one = subject("one", 8)
    assert one.shape_bias is not None
    page = write(tmp_path, one)
    assert not any("guessing" in words for words in page.words)
    overall = replace(one.shape_bias.overall, shape_accuracy=0.01, texture_accuracy=0.02)
    (tmp_path / "report.html").unlink()
    page = write(tmp_path, replace(one, shape_bias=replace(one.shape_bias, overall=overall)))
    assert any("No more often than by guessing did one name" in words for words in page.words)


def test_the_page_says_how_large_it_is(tmp_path: Path) -> None:
    size = write_report(tmp_path / "report.html", report(*(subject(f"model {index}", 9) for index in range(4))))
    assert size == (tmp_path / "report.html").stat().st_size
    assert size < 5e6
    (told,) = re.findall(r"one file \(([\d.]+) MB\)", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert float(told) == pytest.approx(size / 1e6, abs=0.06)


def sentence(content: Report, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        write_report(path, content)
    return str(caught.value)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine", encoding="utf-8")
    expected = f"Expected a new file to write, but got {path}, which exists: name another."
    assert sentence(report(subject("one", 8)), path) == expected
    assert path.read_text(encoding="utf-8") == "mine"
    missing = tmp_path / "no" / "report.html"
    expected = f"Expected a folder to write to, but got {missing.parent}, which does not exist: make it first."
    assert sentence(report(subject("one", 8)), missing) == expected


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    path, one = tmp_path / "report.html", subject("one", 8)
    assert sentence(report(), path) == "Expected at least one network, but got none: look into one first."
    assert sentence(report(one, subject("two", 8, photos=2)), path) == (
        "Expected every network explored on the 1 photos of the report, but got [1, 2] maps: "
        "explore all photos with all networks."
    )
    assert sentence(report(one, replace(one, explored=(explored(8, grid=2),))), path) == (
        "Expected the same grid and size of maps for all networks and photos, "
        "but got (2, 2, 32, 32) and (4, 4, 32, 32): explore them with the same grid and side."
    )
    other = replace(one, receptive_field=replace(one.receptive_field, thresholds=(0.5,)))
    assert sentence(report(one, other), path) == (
        "Expected receptive fields with the same thresholds, but got (0.2, 0.3, 0.5, 0.99) and (0.5,): "
        "measure them with the same ones."
    )
