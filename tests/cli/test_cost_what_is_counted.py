from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from widefield.analysis.cost import measure_cost
from widefield.analysis.operator_shares import KINDS
from widefield.reparam import fold
from widefield.tasks.classification import open_model


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_networks_are_counted_side_by_side(widefield, tmp_path: Path) -> None:
    bars, figures = tmp_path / "bars.png", tmp_path / "cost.json"
    outcome = widefield("cost", "replknet_nano", "convnext_atto", "--size", 96, "--batch", 2, "-o", bars, figures)
    assert outcome.code == 0, outcome.err
    model = open_model("replknet_nano").model
    fold(model)
    expected = measure_cost(model, (2, 3, 96, 96))
    kept = json.loads(figures.read_text(encoding="utf-8"))
    assert [entry["model"] for entry in kept] == ["replknet_nano", "convnext_atto"]
    assert kept[0] == {"model": "replknet_nano", "latency": None, **json.loads(json.dumps(expected.to_plain()))}
    assert f"{expected.total.parameters / 1e6:.2f}M" in outcome.out
    assert f"{100 * expected.large_kernel_mac_share:.1f} %" in outcome.out
    assert "2x3x96x96" in outcome.out
    with Image.open(bars) as image:
        assert image.size[0] > 600


def test_branches_and_modules_are_counted_on_request(widefield, tmp_path: Path) -> None:
    figures = tmp_path / "cost.json"
    outcome = widefield("cost", "replknet_nano", "--merged", "False", "--by-module", 2, "--size", 64, "-o", figures)
    assert outcome.code == 0, outcome.err
    kept = json.loads(figures.read_text(encoding="utf-8"))[0]
    assert kept["parameters"] == sum(p.numel() for p in open_model("replknet_nano").model.parameters())
    assert "with their branches" in outcome.out
    rows = [line for line in outcome.out.splitlines() if "│" in line]
    assert any("ConvNorm2d" in row for row in rows)
    assert any("ClassifierHead" in row for row in rows)


def test_networks_are_timed_on_request(widefield, tmp_path: Path) -> None:
    bars, figures = tmp_path / "bars.png", tmp_path / "cost.json"
    words = ("--size", 32, "--latency", "True", "--seconds", 0.05, "-o", bars, figures)
    outcome = widefield("cost", "mobilenetv3_small_050", *words)
    assert outcome.code == 0, outcome.err
    assert "images/s" in outcome.out
    times = json.loads(figures.read_text(encoding="utf-8"))[0]["latency"]
    assert 0 < times["p05_ms"] <= times["median_ms"] <= times["p95_ms"]
    assert times["images_per_s"] == pytest.approx(1000 / times["median_ms"])
    assert bars.is_file()


def test_shares_of_operators_are_told_drawn_and_kept_on_request(widefield, tmp_path: Path) -> None:
    bars, figures = tmp_path / "bars.png", tmp_path / "cost.json"
    words = ("--size", 64, "--shares", "True", "--seconds", 0, "-o", bars, figures)
    outcome = widefield("cost", "replknet_nano", "mobilenetv3_small_050", *words)
    assert outcome.code == 0, outcome.err
    for entry in json.loads(figures.read_text(encoding="utf-8")):
        kinds = entry["shares"]["kinds"]
        assert list(kinds) == list(KINDS)
        assert sum(kind["macs"] for kind in kinds.values()) == entry["macs"]
        assert sum(kind["share_of_macs"] for kind in kinds.values()) == pytest.approx(1)
        assert sum(kind["share_of_time"] for kind in kinds.values()) == pytest.approx(1)
        assert kinds["large depthwise"]["macs"] == entry["large_kernel_macs"]
        assert f"{entry['model']}: operators of a batch of 1 on cpu" in outcome.out
        for kind in KINDS:
            shown = f"{100 * kinds[kind]['share_of_macs']:.1f} %"
            assert any(kind in line and shown in line for line in outcome.out.splitlines())
    with Image.open(bars) as image:
        assert image.size[0] > 1800


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Expected at least one model, but got none: name them: widefield cost MODEL"),
        (("resnet18", "resnet18"), "Expected models that differ, but got resnet18, resnet18"),
        (
            ("vit_tiny_patch16_224", "--size", 100),
            "Expected an input that VisionTransformer takes, but got one of size",
        ),
        (("resnet18", "--batch", 0), "Expected a batch of at least one image, but got 0"),
        (("resnet18", "--size", 0), "Expected a size in pixels, but got 0"),
        (("resnet18", "-o", "bars.svg"), "Expected a .png or .json file to write, but got bars.svg"),
        (("resnet18", "-o", "nowhere/bars.png"), "Expected a folder to write to, but got nowhere"),
    ],
)
def test_what_cannot_be_counted_is_told_in_one_sentence(widefield, words: tuple[object, ...], sentence: str) -> None:
    outcome = widefield("cost", *words)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_gpu_that_is_not_there_is_told(widefield, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = widefield("cost", "resnet18", "--device", "cuda")
    assert outcome.code == 2
    assert "Expected a GPU to time on, but got none: use --device cpu." in outcome.err


def test_no_file_is_overwritten(widefield, tmp_path: Path) -> None:
    figures = tmp_path / "cost.json"
    figures.write_text("mine", encoding="utf-8")
    outcome = widefield("cost", "resnet18", "-o", figures)
    assert outcome.code == 2
    assert f"Expected a new file to write, but got {figures}, which exists" in outcome.err
    assert figures.read_text(encoding="utf-8") == "mine"
