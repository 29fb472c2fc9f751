from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from widefield._core.errors import InputError
from widefield.checkpoints import replknet
from widefield.data import DataConfig
from widefield.models import create_model
from widefield.tasks.classification import ClassifierCard, ModelConfig, open_model, save_classifier
from widefield.tasks.classification.card import make_classifier

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A network of three classes as a run leaves it."""
    folder = tmp_path / "my-run"
    folder.mkdir()
    config = ModelConfig(name="replknet_nano")
    data = DataConfig(image_size=48, mean=MEAN, std=STD, crop_fraction=1.0, interpolation="bilinear")
    card = ClassifierCard(model=config, data=data, classes=("cat", "dog", "owl"))
    save_classifier(folder / "model.safetensors", make_classifier(config, 3).state_dict(), card)
    return folder


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, which is not on the path of modules."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(folder))])
    return folder


def test_timm_networks_come_with_their_own_image_settings() -> None:
    opened = open_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    settings = timm.get_pretrained_cfg("vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    assert settings is not None
    assert (opened.mean, opened.std) == (settings.mean, settings.std) == ((0.5,) * 3, (0.5,) * 3)
    assert (opened.image_size, opened.crop_fraction, opened.interpolation) == (224, settings.crop_pct, "bicubic")
    assert opened.name == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert (opened.weights, opened.classes, opened.model.training) == ("random, seed 0", None, False)


def test_ours_are_named_alike_and_take_settings() -> None:
    opened = open_model("replknet_nano", num_classes=7, seed=3)
    assert opened.model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert opened.weights == "random, seed 3"


@pytest.mark.parametrize("source", ["replknet_nano", "torchvision:squeezenet1_1"])
def test_the_seed_alone_decides_on_random_weights_and_the_generator_is_left_alone(source: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (open_model(source, seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("ending", ["", "/model.safetensors"])
def test_a_run_is_named_by_its_folder_or_by_its_file(ending: str, run_folder: Path) -> None:
    opened = open_model(f"{run_folder}{ending}")
    assert opened.name == "my-run"
    assert opened.weights == str(run_folder / "model.safetensors")
    assert opened.classes == ("cat", "dog", "owl")
    assert (opened.mean, opened.std, opened.image_size) == (MEAN, STD, 48)
    assert (opened.crop_fraction, opened.interpolation, opened.model.training) == (1.0, "bilinear", False)


def test_the_folder_that_one_is_in_has_a_name(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder)
    assert open_model(".").name == "my-run"


def test_a_published_file_that_says_nothing_of_itself_is_recognised(tmp_path: Path) -> None:
    source = create_model("replknet_nano")
    torch.save(replknet.to_published(source.state_dict()), tmp_path / "theirs.v1.pth.tar")
    opened = open_model(str(tmp_path / "theirs.v1.pth.tar"))
    assert opened.name == "theirs.v1"
    given = source.state_dict()
    assert all(torch.equal(value, given[key]) for key, value in opened.model.state_dict().items())


def test_torchvision_classifiers_come_with_the_image_settings_of_their_weights() -> None:
    opened = open_model("torchvision:resnet18")
    assert type(opened.model).__module__ == "torchvision.models.resnet"
    assert (opened.name, opened.image_size, opened.crop_fraction) == ("resnet18", 224, 224 / 256)
    assert opened.interpolation == "bilinear"
    assert open_model("torchvision:squeezenet1_1", num_classes=4).model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


def test_a_segmentation_network_of_torchvision_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refused)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    opened = open_model("torchvision:lraspp_mobilenet_v3_large")
    assert opened.model(torch.zeros(1, 3, 64, 64))["out"].shape[-2:] == (64, 64)


def test_a_function_of_the_users_is_found_in_the_working_directory(working_directory: Path) -> None:
    (working_directory / "opening_parts.py").write_text("from torch import nn\nLayer = nn.Linear\n")
    (working_directory / "opening_net.py").write_text(
        "def build(width=2):\n    from opening_parts import Layer\n    return Layer(width, 1).double()\n"
    )
    path = list(sys.path)
    opened = open_model("opening_net:build", width=3)
    assert sys.path == path
    assert isinstance(opened.model, nn.Linear)
    assert opened.model.weight.dtype == torch.float32
    assert (opened.model.in_features, opened.model.training) == (3, False)
    assert (opened.name, opened.weights) == ("opening_net:build", "its own")


def test_sources_with_a_scheme_and_pretrained_weights_are_left_to_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def answer(name: str, **settings: object) -> nn.Module:
        asked.append((name, settings))
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", answer)
    for source in ("hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18.a1_in1k", "local-dir:/somewhere"):
        opened = open_model(source, pretrained=True)
        assert (opened.name, opened.weights) == (source, "pretrained")
        assert asked.pop() == (source, {"pretrained": True})


@pytest.mark.parametrize(
    ("source", "settings", "sentence"),
    [
        ("resnet5O", {}, r"Expected the name of a model, but got 'resnet5O': did you mean .*'resnet50'"),
        ("torchvision:resnet5O", {}, r"Expected the name of a torchvision model, .* did you mean .*'resnet50'"),
        ("runs/none", {}, "Expected a run folder or a checkpoint file, but got nothing at runs/none: check the path."),
        ("none.pth", {}, "Expected a run folder or a checkpoint file, but got nothing at none.pth: check the path."),
        (
            "no_such_module:build",
            {},
            r"Expected MODULE:FUNCTION, a function .* but got 'no_such_module:build' \(No mod",
        ),
        ("math:build", {}, r"Expected MODULE:FUNCTION, .* but got 'math:build' \(module 'math' has no attribute"),
        ("os:getcwd", {}, "Expected a torch.nn.Module from os:getcwd, but got str: return the network."),
        (
            "resnet18",
            {"colour": 1},
            "Expected a name and settings of which a network can be made, with 'resnet18', but",
        ),
        ("resnet18.none", {}, r"with 'resnet18.none', but got Invalid pretrained tag \(none\)"),
        ("my-net:build", {}, "with 'my-net:build', but got Unknown model source 'my-net'"),
        ("torchvision:resnet18", {"colour": 1}, "with 'resnet18', but got .*'colour': change the one or the other."),
        ("pelk_t", {"pretrained": True}, "Expected a checkpoint that can be fetched, but got pelk_t.untrained"),
    ],
)
def test_what_cannot_be_opened_gets_one_sentence(source: str, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        open_model(source, **settings)  # type: ignore[arg-type]


def test_a_checkpoint_takes_no_settings_and_has_the_form_that_it_has(run_folder: Path) -> None:
    with pytest.raises(InputError, match="Expected no settings for a checkpoint, but got num_classes: leave them out"):
        open_model(str(run_folder), num_classes=4)
    with pytest.raises(InputError, match=re.escape("Expected a run folder with merged.safetensors")):
        open_model(str(run_folder), form="merged")


def test_a_file_that_is_nothing_known_gets_the_sentence_of_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "strange.pth")
    with pytest.raises(InputError, match="Expected a checkpoint that says which model it is"):
        open_model(str(tmp_path / "strange.pth"))
