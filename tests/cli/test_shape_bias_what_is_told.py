from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.drawn_stimuli import draw_stimuli, zip_folder

from widefield.data import DataConfig
from widefield.tasks.classification import ClassifierCard, ModelConfig, save_classifier
from widefield.tasks.classification.card import make_classifier

NETWORK = """
import torch
from torch import nn

class ByBrightness(nn.Module):
    # Takes dark images for the airliner (404), bright ones for the cleaver (499).
    def forward(self, images):
        logits = torch.zeros(len(images), self.outputs)
        bright = images.mean((1, 2, 3)) > 0
        logits[bright, 499 if self.outputs == 1000 else 0] = 9
        logits[~bright, 404 if self.outputs == 1000 else 1] = 9
        return logits

def build(outputs=1000):
    model = ByBrightness()
    model.outputs = outputs
    return model

def build_small():
    return build(3)

def build_none():
    return nn.Flatten(2)
"""


@pytest.fixture
def stimuli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images with a conflict and one without, and a user's networks in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "bright_net", raising=False)
    (tmp_path / "bright_net.py").write_text(NETWORK, encoding="utf-8")
    root = tmp_path / "stimuli"
    names = ("airplane1-knife1", "knife1-airplane1", "knife2-bird1", "airplane2-oven1", "knife3-knife1")
    for name, grey in zip(names, (10, 20, 200, 210, 20), strict=True):
        draw_stimuli(root, [f"{name.split('-')[0][:-1]}/{name}"], side=20)
        Image.new("RGB", (20, 20), (grey,) * 3).save(root / name.split("-")[0][:-1] / f"{name}.png")
    return root


def test_shares_are_told_drawn_and_kept(stimuli: Path, tmp_path: Path, widefield) -> None:
    draw_stimuli(tmp_path / "edges", ["knife/knife1", "airplane/airplane1"], side=20)
    outcome = widefield(
        "shape-bias",
        "bright_net:build",
        "--stimuli",
        zip_folder(stimuli),
        "--edges",
        tmp_path / "edges",
        "-o",
        tmp_path / "bias.png",
        tmp_path / "bias.json",
    )
    assert outcome.code == 0, outcome.err
    # airplane1 and knife2 go by shape, knife1 by texture, airplane2 is taken for neither: 2 of 3.
    for told in ("66.7", "1 + 0", "1 + 1", "4 images with a conflict", "1 without one left out", "humans 95.9 %"):
        assert told in outcome.out
    assert "50.0 % of 2 edges recognised" in outcome.out
    assert "says nothing" not in outcome.out
    (kept,) = json.loads((tmp_path / "bias.json").read_text(encoding="utf-8"))["models"]
    overall = kept["bias"]["overall"]
    assert (overall["images"], overall["shape_decisions"], overall["texture_decisions"]) == (4, 2, 1)
    assert (kept["bias"]["equal_pairs"], kept["edges"]["accuracy"], kept["silhouettes"]) == (1, 0.5, None)
    with Image.open(tmp_path / "bias.png") as figure:
        assert figure.format == "PNG"


def test_a_run_is_judged_by_a_mapping_of_its_class_names(stimuli: Path, tmp_path: Path, widefield) -> None:
    config = ModelConfig(name="replknet_nano")
    card = ClassifierCard(model=config, data=DataConfig(image_size=32), classes=("blade", "jet", "tree"))
    run = tmp_path / "run"
    run.mkdir()
    save_classifier(run / "model.safetensors", make_classifier(config, 3).state_dict(), card)
    mapping = tmp_path / "classes.json"
    # The order of the file's own list is not that of the run's outputs.
    names = {"classes": ["tree", "jet", "blade"], "to_16class": {"knife": ["blade"], "airplane": ["jet"]}}
    mapping.write_text(json.dumps(names), encoding="utf-8")
    outcome = widefield("shape-bias", run, "--stimuli", stimuli, "--classes", mapping, "-o", tmp_path / "bias.json")
    assert outcome.code == 0, outcome.err
    assert "2 images with a conflict" in outcome.out
    assert "2 left out because it has no class for one of their cues" in outcome.out
    (kept,) = json.loads((tmp_path / "bias.json").read_text(encoding="utf-8"))["models"]
    # With two categories, each decision is for one of the two cues.
    overall = kept["bias"]["overall"]
    assert overall["shape_decisions"] + overall["texture_decisions"] == 2
    assert (kept["name"], kept["weights"], kept["bias"]["uncovered"]) == ("run", str(run / "model.safetensors"), 2)


def test_a_network_that_does_no_better_than_guessing_is_said_to(stimuli: Path, tmp_path: Path, widefield) -> None:
    for folder in stimuli.iterdir():
        for file in folder.iterdir():
            Image.new("RGB", (20, 20), "white" if file.name.startswith("airplane2") else "black").save(file)
    (stimuli / "airplane" / "airplane1-knife1.png").unlink()
    (stimuli / "knife" / "knife1-airplane1.png").unlink()
    outcome = widefield("shape-bias", "bright_net:build", "--stimuli", stimuli)
    assert outcome.code == 0, outcome.err
    assert "one of the two cues was named in 0.0 % of images, no more than guessing would (12.5 %)" in outcome.out
    assert "│ airplane │" in outcome.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Expected at least one model, but got none: name them: widefield shape-bias MODEL ..."),
        (["bright_net:build_small"], "but got bright_net:build_small with 3: name a JSON file with --classes"),
        (["bright_net:build_none"], "Expected a classifier: one score for each class and image, (1, classes), but got"),
        (
            ["bright_net:build", "-o", "bias.pdf"],
            "Expected a .png or .json file to write, but got bias.pdf: change its",
        ),
        (["bright_net:build", "-o", "no/bias.png"], "Expected a folder to write to, but got no, which does not exist"),
        (["bright_net:build", "-o", "there.json"], "Expected a new file to write, but got there.json, which exists"),
        (["bright_net:build", "--classes", "there.json"], "Expected a JSON file that maps classes to categories, but"),
    ],
)
def test_what_cannot_be_asked_gets_one_sentence(
    stimuli: Path, tmp_path: Path, widefield, words: list[str], sentence: str
) -> None:
    (tmp_path / "there.json").write_text("{}", encoding="utf-8")
    outcome = widefield("shape-bias", *words, "--stimuli", stimuli)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert not (tmp_path / "bias.png").exists()
