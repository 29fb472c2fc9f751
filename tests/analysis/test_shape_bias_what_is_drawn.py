from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from widefield._core.errors import InputError
from widefield.analysis.shape_bias import CueReport, shape_bias
from widefield.analysis.shape_bias_plot import draw_shape_bias
from widefield.analysis.shape_bias_reference import HUMANS, NETWORKS


def report(name: str) -> CueReport:
    trials = [("cat", "cat", "dog")] * 3 + [("dog", "cat", "dog")] + [("cat", "dog", "cat")] + [("oven", "bear", "cat")]
    decisions, shapes, textures = zip(*trials, strict=True)
    return CueReport(name=name, weights="random", bias=shape_bias(decisions, shapes, textures))


def test_points_and_lines_lie_where_the_shares_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: (figures.append(self), save(self, *args, **options))
    )
    draw_shape_bias(tmp_path / "bias.png", [report("one"), report("two")])
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bear", "cat", "dog"]
    assert axes.get_xlim() == (1, 0)
    points, line, _, _, humans, network = axes.lines
    # No decision for either cue of the bear: no point.
    assert list(zip(points.get_xdata(), points.get_ydata(), strict=True)) == [(0.75, 1), (0.0, 2)]
    assert list(line.get_xdata()) == [3 / 5] * 2
    assert (list(humans.get_xdata()), list(network.get_xdata())) == ([0.959] * 2, [0.2139] * 2)
    texts = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert texts[:2] == ["one: 60.0 % shape", "two: 60.0 % shape"]
    with Image.open(tmp_path / "bias.png") as image:
        assert image.format == "PNG"


def test_a_classifier_without_decisions_is_named_and_has_no_points(tmp_path: Path) -> None:
    bias = shape_bias(["oven"], ["cat"], ["dog"])
    draw_shape_bias(tmp_path / "bias.png", [CueReport(name="net", weights="random", bias=bias)], published=())
    assert (tmp_path / "bias.png").is_file()


def test_nothing_is_written_over_and_ten_are_the_most(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"Expected a new file to write, but got .*there.png, which exists: name another"
    ):
        draw_shape_bias(tmp_path / "there.png", [report("one")])
    for number in (0, 11):
        with pytest.raises(InputError, match=f"Expected 1 to 10 classifiers, but got {number}: draw fewer"):
            draw_shape_bias(tmp_path / "bias.png", [report("one")] * number)


def test_published_shares_are_shares_and_say_where_they_are_from() -> None:
    references = (HUMANS, *NETWORKS)
    assert len({reference.name for reference in references}) == len(references)
    assert all(0 < reference.shape_fraction < 1 for reference in references)
    assert all("eirhos" in reference.source for reference in references)
