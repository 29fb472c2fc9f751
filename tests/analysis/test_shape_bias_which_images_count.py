from __future__ import annotations

from pathlib import Path

import pytest
from support.drawn_stimuli import draw_stimuli, grey_pixel, zip_folder

from widefield._core.errors import InputError
from widefield.analysis.categories import CATEGORIES
from widefield.analysis.cue_conflict import open_cue_conflict, open_shapes


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """One image for each ordered pair of the 16 categories, as the published set is laid out."""
    root = tmp_path / "stimuli"
    draw_stimuli(root, [f"{shape}/{shape}{1}-{texture}{10}" for shape in CATEGORIES for texture in CATEGORIES][:250])
    draw_stimuli(root, [f"truck/truck1-{texture}10" for texture in CATEGORIES])
    return root


@pytest.mark.parametrize("is_packed", [False, True])
def test_of_256_pairs_the_16_equal_ones_are_left_out(pairs: Path, is_packed: bool) -> None:
    stimuli = open_cue_conflict(zip_folder(pairs) if is_packed else pairs)
    assert (len(stimuli), stimuli.equal_pairs, stimuli.uncovered) == (240, 16, 0)
    expected = {(shape, texture) for shape in CATEGORIES for texture in CATEGORIES if shape != texture}
    assert {(item.shape, item.texture) for item in stimuli.items} == expected


def test_the_name_of_the_file_says_what_is_on_it(tmp_path: Path) -> None:
    greys = draw_stimuli(tmp_path / "images", ["dog/cat3-elephant12", "oven7-bear1"])
    stimuli = open_cue_conflict(tmp_path / "images")
    assert [(item.shape, item.texture) for item in stimuli.items] == [("cat", "elephant"), ("oven", "bear")]
    read = [grey_pixel(stimuli.load(place))[0].item() for place in range(2)]
    assert read == [greys["dog/cat3-elephant12"], greys["oven7-bear1"]]


def test_images_with_a_cue_that_a_classifier_does_not_know_are_left_out(pairs: Path) -> None:
    covered = open_cue_conflict(pairs).within(("cat", "dog", "oven"))
    assert (len(covered), covered.equal_pairs, covered.uncovered) == (6, 16, 234)
    assert {item.shape for item in covered.items} == {item.texture for item in covered.items} == {"cat", "dog", "oven"}


def test_shapes_without_texture_have_one_name(tmp_path: Path) -> None:
    draw_stimuli(tmp_path / "edges", ["cat/cat1", "cat/cat2", "dog/dog10"])
    stimuli = open_shapes(tmp_path / "edges")
    assert [(item.shape, item.texture) for item in stimuli.items] == [("cat", None), ("cat", None), ("dog", None)]
    assert len(stimuli.within(["cat"])) == 2


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "cat3",
            r"Expected images named <shape><number>-<texture><number>, such as .*\.png, but got '.*/cat3\.png': rena",
        ),
        ("cat-dog", "Expected images named <shape><number>-<texture><number>"),
        ("0001_cat3-dog1", "Expected images named <shape><number>-<texture><number>"),
        ("cat3-wolf1", r"Expected the name of a category in '.*/cat3-wolf1\.png', but got 'wolf': "),
        ("cat3-cat1", "Expected images with a cue conflict, but got 1 without one in .*: use images whose"),
    ],
)
def test_a_name_that_says_something_else_gets_one_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    draw_stimuli(tmp_path / "images", [name])
    with pytest.raises(InputError, match=sentence):
        open_cue_conflict(tmp_path / "images")


def test_a_conflict_image_is_no_shape_alone_and_no_image_is_nothing(tmp_path: Path) -> None:
    draw_stimuli(tmp_path / "images", ["cat3-dog1"])
    with pytest.raises(InputError, match=r"Expected images named <shape><number>, such as cat7.png, but got"):
        open_shapes(tmp_path / "images")
    with pytest.raises(InputError, match=r"Expected images: a file, a folder"):
        open_cue_conflict(tmp_path / "none")
    sentence = (
        r"Expected images of the categories that the classifier knows \(cat, oven\), but got 1 of others: use other"
    )
    with pytest.raises(InputError, match=sentence):
        open_cue_conflict(tmp_path / "images").within(["oven", "cat"])
