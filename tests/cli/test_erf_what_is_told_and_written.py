from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from widefield.analysis.images import PhotoTensors
from widefield.analysis.receptive_field import load_receptive_fields
from widefield.analysis.receptive_field_measurement import measure_receptive_field
from widefield.tasks.classification import open_model


def refused(outcome, *parts: str) -> None:
    assert outcome.code == 2, outcome.err
    sentence = outcome.err.strip()
    assert len(sentence.splitlines()) == 1, sentence
    assert sentence.startswith("error: Expected ")
    for part in parts:
        assert part in sentence


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_trained_network_is_compared_with_its_first_weights(
    finished_run: Path, photos: Path, widefield, tmp_path: Path
) -> None:
    outputs = [tmp_path / f"erf.{ending}" for ending in ("png", "json", "safetensors")]
    options = ("--also-initial", "True", "--size", 64, 96, "--images", photos, "--count", 3)
    outcome = widefield("erf", finished_run, *options, "-o", *outputs)
    assert outcome.code == 0, outcome.err
    for path in outputs:
        assert f"wrote {path}" in outcome.out
    fields = load_receptive_fields(outputs[2])
    assert [(field.input_size[0], "random" in field.weights) for field in fields] == [
        (64, False),
        (96, False),
        (64, True),
        (96, True),
    ]
    assert not torch.equal(fields[0].mean, fields[2].mean)
    rows = json.loads(outputs[1].read_text(encoding="utf-8"))
    assert [row["areas"][2]["ratio"] for row in rows] == [field.area(0.5).ratio for field in fields]
    assert rows[0]["source_of_images"] == str(photos)
    assert rows[0]["theoretical_field"]["size_px"][0] > 64
    assert np.asarray(Image.open(outputs[0]).convert("L")).std() > 20
    # Merged or not, it is the same function.
    opened = open_model(str(finished_run))
    images = PhotoTensors(photos, (64, 64), mean=opened.mean, std=opened.std, count=3)
    branched = measure_receptive_field(opened.model, images).mean
    torch.testing.assert_close(fields[0].mean, branched, rtol=1e-3, atol=1e-4 * branched.max().item())


def test_noise_is_told_loudly_and_progress_is_kept(widefield, tmp_path: Path) -> None:
    state = tmp_path / "states"
    command = ("erf", "replknet_nano", "--size", 64, "--count", 2, "--state", state, "--theory", "False")
    first = widefield(*command)
    assert first.code == 0, first.err
    assert "These are fields on noise, not on photos: name some with --images" in words(first.out)
    (file,) = state.iterdir()
    assert file.name == "0-replknet_nano-64.safetensors"
    kept = file.read_bytes()
    again = widefield(*command)
    assert again.out == first.out
    assert file.read_bytes() == kept
    refused(widefield(*command, "--layer", "stages.1"), "Expected a state of 'stages.1' at the centre, but got")


def test_a_transformer_is_told_the_size_of_the_images(widefield) -> None:
    outcome = widefield("erf", "vit_tiny_patch16_224", "--size", 64, "--count", 1, "--layer", "blocks.0")
    assert outcome.code == 0, outcome.err
    assert "blocks.0" in outcome.out
    assert "at 2, 2" in outcome.out
    assert "of all 64 px" in outcome.out


def test_squares_that_miss_the_map_are_told(widefield) -> None:
    options = ("resnet18", "--size", 96, "--count", 1, "--theory", "False")
    outcome = widefield("erf", *options)
    assert "px off the middle that its squares are centred on, which widens them: --around map" in words(outcome.out)
    assert "off the middle" not in widefield("erf", *options, "--around", "map").out


def test_bad_input_gets_one_sentence(photos: Path, widefield, tmp_path: Path) -> None:
    refused(widefield("erf"), "Expected at least one model, but got none")
    refused(
        widefield("erf", "replknet_nano", "--layer", "stage.3", "--count", 1, "--size", 64),
        "the name of a layer of RepLKNet, but got 'stage.3': did you mean 'stages.3'",
    )
    refused(widefield("erf", "replknet_nano", "--images", tmp_path / "nothing"), "but got nothing at")
    (tmp_path / "empty").mkdir()
    refused(widefield("erf", "replknet_nano", "--images", tmp_path / "empty"), "Expected at least one image")
    (photos / "blue" / "0.png").write_bytes(b"no image")
    refused(widefield("erf", "replknet_nano", "--images", photos, "--size", 64), "blue/0.png")
    refused(widefield("erf", "replknet_nano", "--thresholds", 20), "thresholds between 0 and 1, but got 20")
    refused(widefield("erf", "replknet_nano", "--size", 0), "sizes in pixels, but got 0")
    refused(widefield("erf", "replknet_nano", "--state", photos / "red" / "0.png"), "Expected a folder to keep unfin")
    refused(widefield("erf", "replknet_nano", "-o", tmp_path / "erf.gif"), "a .png, .json or .safetensors file")
    refused(widefield("erf", "replknet_nano", "-o", tmp_path / "no" / "erf.png"), "a folder to write to")
    refused(
        widefield("erf", "replknet_nano", "--also-initial", "True", "--size", 64, "--count", 1),
        "Expected trained weights to compare with initial ones, but got 'replknet_nano' with random, seed 0: add",
    )


def test_nothing_is_overwritten(widefield, tmp_path: Path) -> None:
    path = tmp_path / "erf.json"
    path.write_text("mine")
    refused(
        widefield("erf", "replknet_nano", "-o", path), f"Expected a new file to write, but got {path}, which exists"
    )
    assert path.read_text() == "mine"


@pytest.mark.slow
def test_a_segmentation_network_of_torchvision_is_measured(widefield) -> None:
    outcome = widefield("erf", "torchvision:fcn_resnet50", "--size", 64, "--count", 1)
    assert outcome.code == 0, outcome.err
    assert "at 32, 32" in outcome.out
