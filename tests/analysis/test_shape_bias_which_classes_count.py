from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.data import ImageNetInfo

from widefield._core.errors import InputError
from widefield.analysis.categories import (
    CATEGORIES,
    SIXTEEN_CLASS_IMAGENET,
    CategoryMapping,
    imagenet_mapping,
    read_mapping,
)
from widefield.analysis.shape_bias import category_probabilities

# First lemma of each synset, read one by one; birds and dogs, being many, by their place in WordNet.
SYNSETS = {
    "airplane": "airliner",
    "bear": "brown bear, American black bear, ice bear, sloth bear",
    "bicycle": "bicycle-built-for-two, mountain bike",
    "boat": "canoe, fireboat, lifeboat, speedboat, yawl",
    "bottle": "beer bottle, pill bottle, pop bottle, water bottle, water jug, whiskey jug, wine bottle",
    "car": "beach wagon, convertible, sports car",
    "cat": "tabby, tiger cat, Persian cat, Siamese cat, Egyptian cat, cougar",
    "chair": "barber chair, folding chair, rocking chair, throne",
    "clock": "analog clock, digital clock, wall clock",
    "elephant": "Indian elephant, African elephant",
    "keyboard": "computer keyboard, typewriter keyboard",
    "knife": "cleaver",
    "oven": "rotisserie",
    "truck": "fire engine, garbage truck, minivan, moving van, pickup, police van, tow truck, trailer truck",
}
# Offsets of the synsets in WordNet 3.0, where the members of a taxon follow it.
TAXA = {"bird": ("n01503061", "n02062017"), "dog": ("n02084071", "n02114100")}
LEFT_OUT_DOGS = "Chihuahua, cairn, Lhasa, kelpie, boxer, dalmatian, Samoyed, chow, Cardigan"


@pytest.fixture
def names(tmp_path: Path):
    """Write a mapping and return its path."""

    def write(content: object) -> Path:
        path = tmp_path / "classes.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return write


def first_lemmas(places: tuple[int, ...]) -> str:
    info = ImageNetInfo("imagenet-1k")
    return ", ".join(info.index_to_description(place).split(", ")[0] for place in places)


def test_every_class_of_a_category_is_one_of_its_kind() -> None:
    assert len(CATEGORIES) == 16
    assert list(CATEGORIES) == sorted({*SYNSETS, *TAXA})
    for category, expected in SYNSETS.items():
        assert first_lemmas(SIXTEEN_CLASS_IMAGENET[category]) == expected
    info = ImageNetInfo("imagenet-1k")
    for category, (first, last) in TAXA.items():
        assert all(first < info.index_to_label_name(place) < last for place in SIXTEEN_CLASS_IMAGENET[category])
    dogs = SIXTEEN_CLASS_IMAGENET["dog"]
    assert first_lemmas(tuple(place for place in range(151, 269) if place not in dogs)) == LEFT_OUT_DOGS
    assert {category: len(places) for category, places in SIXTEEN_CLASS_IMAGENET.items() if len(places) > 8} == {
        "bird": 49,
        "dog": 109,
    }
    everything = [place for places in SIXTEEN_CLASS_IMAGENET.values() for place in places]
    assert len(everything) == len(set(everything)) == 207


def test_probabilities_are_averaged_over_the_classes_of_each_category() -> None:
    probabilities = torch.rand(5, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    given = category_probabilities(probabilities, imagenet_mapping())
    assert given.shape == (5, 16)
    for column, (_, places) in enumerate(sorted(SIXTEEN_CLASS_IMAGENET.items())):
        for row in range(5):
            expected = sum(probabilities[row, place].item() for place in places) / len(places)
            assert given[row, column].item() == pytest.approx(expected, rel=1e-12)


def test_a_category_does_not_win_by_the_number_of_its_classes() -> None:
    probabilities = torch.zeros(1, 1000)
    probabilities[0, list(SIXTEEN_CLASS_IMAGENET["dog"])] = 0.6 / 109
    probabilities[0, SIXTEEN_CLASS_IMAGENET["knife"][0]] = 0.1
    probabilities[0, 999] = 0.3
    chosen = category_probabilities(probabilities, imagenet_mapping()).argmax(1)
    assert CATEGORIES[int(chosen)] == "knife"


def test_a_mapping_of_the_users_takes_names_and_places(names) -> None:
    path = names({"classes": ["tabby", "beagle", "ship", "collie"], "to_16class": {"dog": ["beagle", 3], "cat": [0]}})
    assert read_mapping(path, 4) == CategoryMapping(num_classes=4, members={"cat": (0,), "dog": (1, 3)})
    assert list(read_mapping(path, 4).members) == ["cat", "dog"]


def test_the_classifiers_own_names_come_first(names) -> None:
    path = names({"classes": ["tabby", "beagle"], "to_16class": {"dog": ["beagle"], "cat": ["tabby"], "boat": []}})
    mapping = read_mapping(path, 3, ["beagle", "ship", "tabby"])
    assert mapping == CategoryMapping(num_classes=3, members={"cat": (2,), "dog": (0,)})
    probabilities = torch.tensor([[0.2, 0.5, 0.3]])
    assert category_probabilities(probabilities, mapping).tolist() == [pytest.approx([0.3, 0.2])]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            ["cat"],
            r"Expected a JSON file that maps classes to categories, but got '.*', which holds something else: wri",
        ),
        ({"to_16class": []}, "Expected a JSON file that maps classes to categories, but got .* holds something else"),
        ({"to_16class": {}, "classes": "x"}, "Expected a list of class names under 'classes', but got something else"),
        ({"to_16class": {"dgo": [0]}}, "Expected the name of a category of cue-conflict images, but got 'dgo'.* 'dog'"),
        ({"to_16class": {"dog": 0}}, "Expected a list of classes for 'dog', but got 0: write"),
        (
            {"to_16class": {"dog": [1.5]}},
            "Expected the name of a class, or the place of its output, but got 1.5: write",
        ),
        ({"to_16class": {"dog": [3]}}, "Expected outputs from 0 to 2, but got 3: correct the mapping"),
        (
            {"to_16class": {"dog": ["a"]}},
            "Expected class names under 'classes', but got none, to find 'a' in: add them",
        ),
        ({"to_16class": {"dog": ["a"]}, "classes": ["aa", "b", "c"]}, "Expected the name of a class, but got 'a': did"),
        ({"to_16class": {}, "classes": ["a", "b"]}, "Expected 3 class names for 3 outputs, but got 2 in .*: name the"),
        (
            {"to_16class": {"dog": [0], "cat": [0]}},
            "Expected each class once, but got 0 twice, in 'cat' and 'dog': keep",
        ),
        ({"to_16class": {"dog": [1, 1]}}, "Expected each class once, but got 1 twice, in 'dog' and 'dog': keep one"),
        ({"to_16class": {"dog": [1]}}, "Expected classes of at least two categories, but got 1 in .*: write"),
    ],
)
def test_a_mapping_that_cannot_be_meant_gets_one_sentence(names, content: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_mapping(names(content), 3)


def test_a_mapping_that_cannot_be_read_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected a JSON file that maps .*, which cannot be read .*No such file"):
        read_mapping(tmp_path / "none.json", 3)
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"Expected a JSON file that maps .*, which cannot be read"):
        read_mapping(tmp_path / "broken.json", 3)


def test_probabilities_of_another_classifier_are_refused() -> None:
    sentence = r"Expected probabilities of shape \(N, 1000\), but got \(2, 10\): use the mapping of this classifier"
    with pytest.raises(InputError, match=sentence):
        category_probabilities(torch.zeros(2, 10), imagenet_mapping())
