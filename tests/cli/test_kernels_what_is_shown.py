from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from widefield.analysis.kernel_weights import measure_kernel_weights
from widefield.reparam import fold
from widefield.tasks.classification import open_model


def test_the_kernels_of_a_network_are_told_kept_and_drawn(widefield, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    page, figures = tmp_path / "page.png", tmp_path / "kernels.json"
    outcome = widefield("kernels", "unireplknet_a", "--layers", "stages.3", "--scale", "log", "-o", page, figures)
    assert outcome.code == 0, outcome.err
    model = open_model("unireplknet_a").model
    fold(model)
    expected = measure_kernel_weights(model, layers=["stages.3"])
    for layer in expected:
        assert layer.name in outcome.out
        assert f"{100 * layer.central_share:.1f} %" in outcome.out
    assert "random, seed 0" in outcome.out
    kept = json.loads(figures.read_text(encoding="utf-8"))
    assert [entry["name"] for entry in kept] == [layer.name for layer in expected]
    assert kept[0]["map"] == pytest.approx(expected[0].map.numpy())
    with Image.open(page) as image:
        assert image.size[0] > 300


def test_any_network_has_its_kernels_shown(widefield) -> None:
    outcome = widefield("kernels", "torchvision:resnet18")
    assert outcome.code == 0, outcome.err
    assert "conv1" in outcome.out
    assert "7x7 dense" in outcome.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--min-size", 99), "Expected a network with a kernel of 99 or more, but got ConvNeXt, whose largest is 7"),
        (("--layers", "stages.0.blocks.0.conv_sw"), "did you mean 'stages.0.blocks.0.conv_dw'"),
        (("-o", "page.gif"), "Expected a .png or .json file to write, but got page.gif: change its ending."),
        (("-o", "nowhere/page.png"), "Expected a folder to write to, but got nowhere, which does not exist"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_sentence(widefield, words: tuple[object, ...], sentence: str) -> None:
    outcome = widefield("kernels", "convnext_atto", *words)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_no_page_is_overwritten(widefield, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    page.write_bytes(b"mine")
    outcome = widefield("kernels", "convnext_atto", "-o", page)
    assert outcome.code == 2
    assert f"Expected a new file to write, but got {page}, which exists" in outcome.err
    assert page.read_bytes() == b"mine"
