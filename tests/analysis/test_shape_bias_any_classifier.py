from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from support.drawn_stimuli import ByGrey, draw_stimuli, grey_pixel
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.analysis.categories import CategoryMapping, imagenet_mapping
from widefield.analysis.cue_conflict import open_cue_conflict, open_shapes
from widefield.analysis.shape_bias import count_classes, decide, evaluate_shape_bias, evaluate_shapes

# Outputs: two cats, one dog, one oven, and one of no category.
MAPPING = CategoryMapping(num_classes=5, members={"cat": (0, 1), "dog": (2,), "oven": (3,)})
CAT, DOG, OVEN = [4.0, 4.0, 3.5, 0, 9], [4.0, 0, 3.9, 0, 9], [0.0, 0, 0, 1, 9]


@pytest.fixture
def answers(tmp_path: Path) -> tuple[Path, ByGrey]:
    """Six images of three categories, two that do not count, and the answers of a classifier."""
    told = {
        "cat1-dog1": CAT,
        "cat2-oven1": DOG,
        "dog1-cat1": CAT,
        "dog2-oven1": DOG,
        "oven1-cat1": OVEN,
        "oven2-dog1": OVEN,
        "oven3-oven1": OVEN,
        "cat3-knife1": CAT,
    }
    greys = draw_stimuli(tmp_path / "images", list(told))
    return tmp_path / "images", ByGrey({greys[name]: logits for name, logits in told.items()})


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_constructed_logits_give_the_exact_shares(answers: tuple[Path, ByGrey], batch_size: int) -> None:
    place, model = answers
    done: list[int] = []
    bias = evaluate_shape_bias(
        model,
        open_cue_conflict(place),
        MAPPING,
        transform=grey_pixel,
        batch_size=batch_size,
        progress=done.append,
    )
    assert bias.overall.shape_fraction == 4 / 5
    assert (bias.overall.shape_accuracy, bias.overall.texture_accuracy) == (4 / 6, 1 / 6)
    assert {name: counted.shape_fraction for name, counted in bias.by_shape.items()} == {
        "cat": 1.0,
        "dog": 0.5,
        "oven": 1.0,
    }
    assert (bias.equal_pairs, bias.uncovered, bias.chance) == (1, 1, 2 / 3)
    assert done == model.batches
    assert max(done) == min(batch_size, 6)


def test_the_mean_over_the_classes_of_a_category_decides(answers: tuple[Path, ByGrey]) -> None:
    # The best single class of the second answer is a cat, and so is the sum of both cats; their mean is below the dog.
    assert torch.tensor(DOG).softmax(0)[:3].argmax() == 0
    place, model = answers
    stimuli = open_cue_conflict(place).within(MAPPING.categories)
    decisions = decide(model, stimuli, MAPPING, transform=grey_pixel)
    assert decisions == ["cat", "dog", "cat", "dog", "oven", "oven"]


def test_probabilities_too_small_for_float32_still_decide(tmp_path: Path) -> None:
    greys = draw_stimuli(tmp_path / "images", ["cat1-dog1"])
    model = ByGrey({greys["cat1-dog1"]: [-400.0, -400, -399, -401, 0]})
    stimuli = open_cue_conflict(tmp_path / "images")
    assert decide(model, stimuli, MAPPING, transform=grey_pixel) == ["dog"]


def test_shapes_alone_are_recognised_or_not(tmp_path: Path) -> None:
    greys = draw_stimuli(tmp_path / "edges", ["cat/cat1", "cat/cat2", "dog/dog1", "knife/knife1"])
    model = ByGrey(dict(zip(greys.values(), (CAT, OVEN, DOG, CAT), strict=True)))
    counted = evaluate_shapes(model, open_shapes(tmp_path / "edges"), MAPPING, transform=grey_pixel)
    assert (counted.images, counted.accuracy, counted.uncovered) == (3, 2 / 3, 1)
    assert counted.by_shape == {"cat": 0.5, "dog": 1.0}


def test_the_mode_of_every_module_is_left_as_it_was(answers: tuple[Path, ByGrey]) -> None:
    place, model = answers
    model.train()
    model.normalise.eval()
    decide(model, open_cue_conflict(place).within(MAPPING.categories), MAPPING, transform=grey_pixel)
    assert (model.training, model.normalise.training) == (True, False)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_a_network_of_timm_is_asked_as_it_is(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name)

    def transform(image: Image.Image) -> Tensor:
        return torch.full((3, 224, 224), float(grey_pixel(image)[0]))

    draw_stimuli(tmp_path / "images", ["cat1-dog1", "knife1-bird1"])
    stimuli = open_cue_conflict(tmp_path / "images")
    bias = evaluate_shape_bias(model, stimuli, imagenet_mapping(), transform=transform)
    assert (bias.overall.images, bias.chance, model.training) == (2, 2 / 16, True)
    assert count_classes(model, transform(stimuli.load(0))) == 1000


class Answering(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> object:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ({"out": 1}, r"Expected a classifier: one score for each class and image, \(1, classes\), but got a dict: use"),
        (torch.zeros(1, 5, 7, 7), r"but got shape \(1, 5, 7, 7\): use a network that classifies images"),
        (torch.zeros(2, 5), r"but got shape \(2, 5\)"),
        (
            torch.tensor([[0, 0, 0, 0, float("nan")]]),
            "Expected finite scores, but got NaN or infinite ones for 1 of 1 im",
        ),
        (torch.zeros(1, 6), r"Expected probabilities of shape \(N, 5\), but got \(1, 6\): use the mapping of this"),
    ],
)
def test_what_is_no_classifier_gets_one_sentence(tmp_path: Path, answer: object, sentence: str) -> None:
    draw_stimuli(tmp_path / "images", ["cat1-dog1"])
    stimuli = open_cue_conflict(tmp_path / "images")
    with pytest.raises(InputError, match=sentence):
        decide(Answering(answer), stimuli, MAPPING, transform=grey_pixel)
    with pytest.raises(InputError, match=r"Expected at least one image in a batch, but got 0: use a number from 1"):
        decide(Answering(answer), stimuli, MAPPING, transform=grey_pixel, batch_size=0)
