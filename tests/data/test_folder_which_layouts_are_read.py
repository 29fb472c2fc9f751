from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from widefield._core.errors import InputError
from widefield.data import DataConfig, open_split, open_splits

if TYPE_CHECKING:
    from widefield.data.source import ImageSource

Write = Callable[..., Path]
Members = dict[str, bytes | int]


def content(source: ImageSource) -> set[tuple[str, bytes]]:
    """Return class name and pixels of every image."""
    loaded = [source.load(index) for index in range(len(source))]
    return {(source.classes[label], image.tobytes()) for image, label in loaded}


def expected(members: Members, image_bytes: Callable[[int], bytes], tmp_path: Path) -> set[tuple[str, bytes]]:
    found = set()
    for member, seed in members.items():
        assert isinstance(seed, int)
        path = tmp_path / "one.png"
        path.write_bytes(image_bytes(seed))
        with Image.open(path) as image:
            found.add((member.split("/")[-2], image.convert("RGB").tobytes()))
    return found


def under(prefix: str, members: Members) -> Members:
    return {f"{prefix}/{member}": value for member, value in members.items()}


def shifted(members: Members) -> Members:
    return {member: value + 100 for member, value in members.items() if isinstance(value, int)}


@pytest.fixture(params=["folders", "zips", "tars", "mixed", "one zip", "one tar", "one zip with a top folder"])
def split_root(
    request: pytest.FixtureRequest, two_classes: Members, write_tree: Write, write_zip: Write, write_tar: Write
) -> Path:
    """The same images with a train and a validation split, in every layout."""
    val = shifted(two_classes)
    both = under("train", two_classes) | under("val", val)
    match request.param:
        case "folders":
            return write_tree("root", under("train", two_classes) | under("valid", val))
        case "zips":
            write_zip("root/train.zip", two_classes)
            return write_zip("root/val.zip", val).parent
        case "tars":
            write_tar("root/train.tar", under("./train", two_classes))
            return write_tar("root/validation.tar", val).parent
        case "mixed":
            write_zip("root/val.zip", under("images", val))
            return write_tree("root", under("train", two_classes))
        case "one zip":
            return write_zip("root.zip", both)
        case "one tar":
            return write_tar("root.tar", both)
        case _:
            return write_zip("root.zip", under("pets", both))


def test_every_layout_gives_the_same_images(
    split_root: Path, two_classes: Members, image_bytes: Callable[[int], bytes], tmp_path: Path
):
    splits = open_splits(DataConfig(root=str(split_root)))
    assert splits.train.classes == splits.validation.classes == ("cat", "dog")
    assert content(splits.train) == expected(two_classes, image_bytes, tmp_path)
    assert content(splits.validation) == expected(shifted(two_classes), image_bytes, tmp_path)
    assert splits.test is None
    assert "2 classes, 10 train, 10 validation images" in splits.description


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "zip with a top folder"])
def test_bare_class_folders_are_split_by_class(
    kind: str, two_classes: Members, write_tree: Write, write_zip: Write, write_tar: Write
):
    match kind:
        case "folder":
            root = write_tree("root", two_classes)
        case "zip":
            root = write_zip("root.zip", two_classes)
        case "tar":
            root = write_tar("root.tar", two_classes)
        case _:
            root = write_zip("root.zip", under("pets", two_classes))
    config = DataConfig(root=str(root), validation_fraction=0.4)
    splits = open_splits(config)
    assert (len(splits.train), len(splits.validation)) == (6, 4)
    assert not content(splits.train) & content(splits.validation)
    assert content(open_split(config, "validation")) == content(splits.validation)
    assert content(open_split(config, "train")) == content(splits.train)
    assert "validation drawn from train, seed 0" in splits.description


def test_a_test_split_stays_apart(two_classes: Members, write_tree: Write):
    root = write_tree("root", under("train", two_classes) | under("test", shifted(two_classes)))
    splits = open_splits(DataConfig(root=str(root)))
    assert (len(splits.train), len(splits.validation)) == (8, 2)
    assert splits.test is not None
    assert len(splits.test) == 10


def test_a_class_may_be_called_train(write_tree: Write):
    root = write_tree("root", {f"{name}/{number}.png": number for name in ("boat", "train") for number in range(5)})
    assert open_splits(DataConfig(root=str(root))).train.classes == ("boat", "train")


def test_classes_json_fixes_the_order_of_the_labels(two_classes: Members, write_tree: Write):
    root = write_tree("root", two_classes | {"classes.json": json.dumps({"classes": ["dog", "cat"]}).encode()})
    source = open_split(DataConfig(root=str(root)), "train")
    assert source.classes == ("dog", "cat")
    for index in range(len(source)):
        assert source.classes[source.load(index)[1]] in source.name(index)


def test_classes_json_must_name_the_folders(two_classes: Members, write_tree: Write):
    root = write_tree("root", two_classes | {"classes.json": b'["dog", "cow"]'})
    with pytest.raises(
        InputError, match=r"same classes in classes\.json and in the folders, but got 'cat', 'cow' in one"
    ):
        open_splits(DataConfig(root=str(root)))


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_image_is_passed_over(packed: bool, two_classes: Members, write_tree: Write, write_zip: Write):
    clutter: Members = {
        "__MACOSX/cat/._0.png": b"x",
        "cat/._0.png": b"x",
        "cat/.DS_Store": b"x",
        "cat/Thumbs.db": b"x",
        "dog/notes.txt": b"x",
        ".git/config": b"x",
        "README.md": b"x",
    }
    root = (write_zip if packed else write_tree)("root.zip" if packed else "root", two_classes | clutter)
    splits = open_splits(DataConfig(root=str(root)))
    assert len(splits.train) + len(splits.validation) == 10
    assert splits.train.classes == ("cat", "dog")


def test_images_beside_the_class_folders_are_reported(
    two_classes: Members, write_tree: Write, caplog: pytest.LogCaptureFixture
):
    root = write_tree("root", two_classes | {"cover.png": 1})
    with caplog.at_level(logging.WARNING):
        splits = open_splits(DataConfig(root=str(root)))
    assert len(splits.train) + len(splits.validation) == 10
    assert "1 images directly in" in caplog.text


def test_images_in_sub_folders_belong_to_the_class_above(write_tree: Write):
    root = write_tree("root", {f"{name}/{day}/0.png": 1 for name in ("cat", "dog") for day in ("may", "june")})
    splits = open_splits(DataConfig(root=str(root), validation_fraction=0.5))
    assert splits.train.classes == ("cat", "dog")
    assert len(splits.train) == 2


def test_a_link_that_leads_back_does_not_loop(two_classes: Members, write_tree: Write):
    root = write_tree("root", two_classes)
    os.symlink(root / "cat", root / "cat" / "again")
    splits = open_splits(DataConfig(root=str(root)))
    assert len(splits.train) + len(splits.validation) == 10


def test_the_validation_part_opens_without_the_training_files(two_classes: Members, write_zip: Write):
    root = write_zip("root/val.zip", two_classes).parent
    assert len(open_split(DataConfig(root=str(root)), "validation")) == 10
    with pytest.raises(InputError, match="Expected a train split, but got only validation in"):
        open_splits(DataConfig(root=str(root)))


def test_a_split_that_is_not_there_is_refused(two_classes: Members, write_tree: Write):
    root = write_tree("root", two_classes)
    with pytest.raises(InputError, match=r"Expected a test split, but got only train in .*: add the test images"):
        open_split(DataConfig(root=str(root)), "test")


@pytest.mark.parametrize("part", ["all", "validation"])
def test_classes_that_differ_between_splits_are_named(part: str, two_classes: Members, write_tree: Write):
    val = {member.replace("dog", "cow"): value for member, value in two_classes.items()}
    config = DataConfig(root=str(write_tree("root", under("train", two_classes) | under("val", val))))
    with pytest.raises(InputError) as caught:
        open_splits(config) if part == "all" else open_split(config, "validation")
    assert str(caught.value).startswith(
        "Expected the same classes in train and validation, but got 'dog' only in train and 'cow' only in validation ("
    )


def test_two_places_for_one_split_are_refused(two_classes: Members, write_tree: Write, write_zip: Write):
    write_zip("root/train.zip", two_classes)
    root = write_tree("root", under("train", two_classes))
    with pytest.raises(InputError, match=r"Expected one train split in .*, but got 'train' and 'train\.zip': keep one"):
        open_splits(DataConfig(root=str(root)))
    other = write_tree("other", under("train", two_classes) | under("val", two_classes) | under("valid", two_classes))
    with pytest.raises(InputError, match="Expected one validation folder, but got 'val' and 'valid': keep one"):
        open_splits(DataConfig(root=str(other)))


def test_a_missing_root_is_answered_with_the_nearest_name(two_classes: Members, write_tree: Write, tmp_path: Path):
    root = write_tree("caltech101", two_classes)
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root=str(tmp_path / "caltch101")))
    assert str(caught.value) == (
        f"Expected an existing folder or archive, but got {str(tmp_path / 'caltch101')!r}, which does not exist: "
        f"did you mean {str(root)!r}."
    )
    with pytest.raises(InputError, match=f"exists as far as {str(tmp_path)!r}"):
        open_splits(DataConfig(root=str(tmp_path / "no" / "such" / "folder")))
    with pytest.raises(InputError, match=r"which does not exist: correct the path\."):
        open_splits(DataConfig(root=str(tmp_path / "Q")))


def test_an_empty_folder_and_one_without_images_are_refused(write_tree: Write):
    for name, members in (("empty", {}), ("text", {"cat/notes.txt": b"x"})):
        root = write_tree(name, members)
        with pytest.raises(InputError) as caught:
            open_splits(DataConfig(root=str(root)))
        assert str(caught.value) == (
            "Expected train/ and val/ (each a folder, .zip or .tar) with one folder of images for each class, "
            f"or such class folders, but got no image in {root.as_posix()!r}: "
            "give the folder or archive that holds the images."
        )


def test_a_class_folder_without_images_is_named(two_classes: Members, write_tree: Write):
    root = write_tree("root", two_classes | {"cow/notes.txt": b"x"})
    with pytest.raises(
        InputError, match=r"Expected images in every class folder, but got none in 'cow' of .*: add images"
    ):
        open_splits(DataConfig(root=str(root)))


def test_many_odd_folders_are_counted(two_classes: Members, write_tree: Write):
    root = write_tree("root", two_classes | {f"z{number}/notes.txt": b"x" for number in range(8)})
    with pytest.raises(InputError, match="'z0', 'z1', 'z2', 'z3', 'z4' and 3 more of"):
        open_splits(DataConfig(root=str(root)))


def test_images_without_class_folders_are_answered_with_the_layout(write_tree: Write):
    root = write_tree("root", {f"{number}.png": number for number in range(3)})
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root=str(root)))
    assert "with one folder of images for each class" in str(caught.value)
    assert "but got 3 images and no class folder in" in str(caught.value)
    assert str(caught.value).endswith("move the images of each class into a folder named after it.")


def test_a_single_class_is_refused(write_tree: Write):
    root = write_tree("root", {f"cat/{number}.png": number for number in range(3)})
    with pytest.raises(InputError, match=r"Expected at least 2 classes, but got 1 \('cat'\) in"):
        open_splits(DataConfig(root=str(root)))


def test_a_class_with_too_few_images_to_split_is_named(two_classes: Members, write_tree: Write):
    root = write_tree("root", two_classes | {"cow/0.png": 1})
    with pytest.raises(InputError, match="but got 1 of class 'cow'"):
        open_splits(DataConfig(root=str(root)))


def test_labels_are_those_of_the_folders(two_classes: Members, write_tree: Write):
    source = open_split(DataConfig(root=str(write_tree("root", under("val", two_classes)))), "validation")
    assert [source.load(index)[1] for index in range(10)] == np.repeat([0, 1], 5).tolist()
    assert source.name(0).endswith("root/val/cat/0.png")
