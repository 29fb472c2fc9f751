from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from widefield.analysis.images import PhotoTensors
from widefield.analysis.receptive_field_measurement import measure_receptive_field
from widefield.tasks.classification import open_model


@pytest.fixture
def stimuli(tmp_path: Path) -> Path:
    root = tmp_path / "stimuli"
    root.mkdir()
    for name in ("cat1-dog1", "dog2-cat1", "cat3-cat2", "dog1-knife1"):
        noise = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(len(name)), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(root / f"{name}.png")
    return root


def data_of(path: Path) -> Any:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', path.read_text("utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_networks_of_any_kind_share_a_page(widefield, photos: Path, stimuli: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    words = ("replknet_nano", "resnet18", "--images", photos, "--count", 3, "--size", 96, "--stimuli", stimuli)
    outcome = widefield(
        "report", *words, "--explore", 2, "--date", "2026-01-02", "--latency", "True", "--seconds", 0, "-o", path
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)"
    data = data_of(path)
    ours, theirs = data["models"]
    assert (ours["name"], theirs["name"]) == ("replknet_nano", "resnet18")
    assert data["date"] == "2026-01-02"
    assert data["command"].startswith("widefield report replknet_nano resnet18 --images ")
    assert (data["explorer"]["rows"], data["explorer"]["columns"]) == (3, 3)
    assert len(data["explorer"]["photos"]) == 2
    assert [layer["kernel_size"] for layer in ours["kernels"]] == [[13, 13]] * len(ours["kernels"])
    assert theirs["shape_bias"]["overall"]["images"] == 3
    assert theirs["shape_bias"]["equal_pairs"] == 1
    assert theirs["cost"]["parameters"] == 11_689_512
    assert theirs["latency"]["runs"] == 5
    opened = open_model("resnet18")
    tensors = PhotoTensors(photos, (96, 96), mean=opened.mean, std=opened.std, count=3)
    expected = measure_receptive_field(opened.model, tensors)
    for area, told in zip(expected.ratios, theirs["receptive_field"]["areas"], strict=True):
        assert told == pytest.approx(vars(area), nan_ok=False)


def test_what_was_not_asked_for_is_left_out(widefield, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    outcome = widefield(
        "report", "resnet18", "--images", photos, "--count", 1, "--size", 64, "--explore", 0, "-o", path
    )
    assert outcome.code == 0, outcome.err
    data = data_of(path)
    assert data["explorer"] is None
    assert data["models"][0]["shape_bias"] is None
    assert data["models"][0]["latency"] is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("resnet18", "-o", "report.pdf"), "Expected a .html file to write, but got report.pdf: change its ending."),
        (
            ("resnet18", "-o", "here.html"),
            "Expected a new file to write, but got here.html, which exists: name another.",
        ),
        (("resnet18", "resnet18"), "Expected models that differ, but got resnet18, resnet18: name each of them once."),
        (("resnet18", "--size", "0"), "Expected a size in pixels, but got 0: use --size 224."),
        (("resnet18", "--grid", "0"), "Expected a grid of at least one location, but got 0: use --grid 9."),
        (
            ("resnet18", "--explore", "5"),
            "Expected 0 to 4 photos to explore, of those that are averaged over, but got 5: use --explore 1.",
        ),
        (
            ("resnet18", "--count", "99"),
            "Expected a count of 1 to 12, the images there are, but got 99: ask for fewer, or name a place with more.",
        ),
        ((), "Expected at least one model, but got none: name them: widefield report MODEL ...."),
    ],
)
def test_bad_input_gets_one_sentence(
    widefield, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.html").write_text("mine", encoding="utf-8")
    outcome = widefield("report", *words, "--images", photos)
    assert outcome.code == 2
    assert outcome.err.strip() == f"error: {sentence}"
    assert Path("here.html").read_text(encoding="utf-8") == "mine"
