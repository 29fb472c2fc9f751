from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from widefield._core.errors import InputError
from widefield.checkpoints.files import read_weights, write_weights
from widefield.data import DataConfig
from widefield.tasks.classification import ClassifierCard, ModelConfig, load_classifier, save_classifier
from widefield.tasks.classification.card import make_classifier

CONFIG = ModelConfig(name="mobilenetv2_lk", options=("width_mult=0.25", "shortcut=false"))
CARD = ClassifierCard(model=CONFIG, data=DataConfig(image_size=32), classes=("cat", "dog"))

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("card") / "model.safetensors"
    torch.manual_seed(0)
    save_classifier(path, make_classifier(CONFIG, 2).state_dict(), CARD)
    return path


@pytest.fixture
def written(whole: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Write the file with a changed card."""

    def write(change: Change) -> Path:
        tensors, metadata = read_weights(whole)
        card = json.loads(metadata["widefield"])
        change(card)
        write_weights(tmp_path / "w.safetensors", tensors, {"widefield": json.dumps(card)})
        return tmp_path / "w.safetensors"

    return write


_OPENED: list[list[str] | None] = [None]


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _OPENED[0] is not None and event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        _OPENED[0].append(str(arguments[0]))


sys.addaudithook(_note)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Names of everything that is opened meanwhile; an audit hook cannot be taken away, so that it is switched."""
    _OPENED[0] = []
    yield _OPENED[0]
    _OPENED[0] = None


def test_a_card_of_ours_is_read(whole: Path) -> None:
    model, card = load_classifier(whole)
    assert card == CARD
    assert model.get_parameter("head.fc.weight").shape[0] == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda card: card["model"].update(name="hf_hub:timm/resnet18.a1_in1k"), "hf_hub:timm/resnet18.a1_in1k"),
        (lambda card: card["model"].update(name="hf-hub:timm/resnet18.a1_in1k"), "hf-hub:"),
        (lambda card: card["model"].update(name="local-dir:{bait}"), "local-dir:"),
        (lambda card: card["model"].update(name="{bait}/model"), "one of our models"),
        (lambda card: card["model"].update(name="torchvision:resnet18"), "torchvision:resnet18"),
        (lambda card: card["model"].update(name="os:getcwd"), "os:getcwd"),
        (lambda card: card["model"].update(options=["pretrained=true"]), "'pretrained'"),
        (lambda card: card["model"].update(options=["checkpoint_path={bait}/file"]), "'checkpoint_path'"),
        (lambda card: card["model"].update(options=["cache_dir={bait}"]), "'cache_dir'"),
        (lambda card: card["model"].update(options=["features_only=true"]), "'features_only'"),
        (lambda card: card["model"].update(options=["pretrained_cfg={file: '{bait}/file'}"]), "'pretrained_cfg'"),
        (
            lambda card: card["model"].update(options=["pretrained=true", "pretrained_cfg_overlay={file: '{bait}/x'}"]),
            "'pretrained', 'pretrained_cfg_overlay'",
        ),
        (lambda card: card["model"].update(options=["device=meta"]), "'device'"),
        (lambda card: card["model"].update(options=["width_mult={a: 1}"]), "options that are numbers, words"),
        (lambda card: card["model"].update(options=["width_mult=" + "[" * 900]), "values as in YAML"),
        (lambda card: card["model"].update(options=["width_mult=" + "1" * 2000]), "with short options"),
        (lambda card: card["model"].update(options=["width_mult=1.0e+30"]), "numbers of at most 1,000,000"),
        (lambda card: card["model"].update(kernel_sizes=[100_001] * 4), "of memory of this machine"),
        (lambda card: card["data"].update(root="pipe:cat {bait}/file"), "whose data is on this machine"),
        (lambda card: card["data"].update(root="wds:https://example.org/a.tar"), "whose data is on this machine"),
        (lambda card: card["data"].update(root="hfds:s3://bucket/x"), "whose data is on this machine"),
        (lambda card: card["data"].update(image_size=10**9), "image_size as a finite number"),
        (lambda card: card["data"].update(mean=[float("nan")] * 3), "data.mean to be a finite number"),
        (lambda card: card["data"].update(workers=10**6), "workers as a finite number of at least 0 and at most 1024"),
        (lambda card: card.pop("classes"), "none called 'classes'"),
        (lambda card: card.update(model=[]), "a mapping of the fields of model"),
        (lambda card: card.update(classes=["a", 1]), "classes to be of type str"),
    ],
)
def test_what_a_card_may_not_say_is_refused_and_nothing_else_is_opened(
    change: Change, told: str, written: Callable[[Change], Path], tmp_path: Path, opened: list[str]
) -> None:
    bait = tmp_path / "bait"
    bait.mkdir()
    (bait / "file").write_text("bait")

    def aimed(card: dict[str, Any]) -> None:
        change(card)
        replaced = json.loads(json.dumps(card).replace("{bait}", str(bait)))
        card.clear()
        card.update(replaced)

    path = written(aimed)
    opened.clear()
    with pytest.raises(InputError) as caught:
        load_classifier(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    # Python's own modules may be imported meanwhile.
    assert [name for name in opened if "bait" in name or "huggingface" in name or not name.startswith("/")] == []


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", "null", '"x"', "1" * 10_000])
def test_a_card_that_is_none_is_told(text: str, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, read_weights(whole)[0], {"widefield": text})
    with pytest.raises(InputError, match=r"^Expected .*w\.safetensors"):
        load_classifier(path)


def test_where_weights_came_from_is_not_on_the_card(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    config = ModelConfig(name=CONFIG.name, options=(*CONFIG.options, "pretrained=true", "cache_dir=/somewhere"))
    save_classifier(path, read_weights(whole)[0], ClassifierCard(model=config, data=CARD.data, classes=CARD.classes))
    assert load_classifier(path)[1].model == CONFIG


def test_a_name_with_a_scheme_is_taken_at_the_users_own_word(
    written: Callable[[Change], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def make(name: str, **settings: Any) -> object:
        made.append(name)
        raise ValueError("made")

    monkeypatch.setattr("widefield.tasks.classification.card.create_model", make)
    path = written(lambda card: card["model"].update(name="hf-hub:a/b", options=[]))
    with pytest.raises(InputError, match="name the same model with --model if you trust its source"):
        load_classifier(path)
    assert made == []
    with pytest.raises(InputError, match="made"):
        load_classifier(path, model="hf-hub:a/b")
    assert made == ["hf-hub:a/b"]
