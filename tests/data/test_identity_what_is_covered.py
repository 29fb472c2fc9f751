from __future__ import annotations

import csv
import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from widefield.data import DataConfig, identify, open_splits, read_images, write_images


@pytest.fixture(params=["folder", "zip", "tar", "shards"])
def place(
    request: Any, write_tree: Callable, write_zip: Callable, write_tar: Callable, two_classes: dict[str, Any]
) -> Callable[[str, dict[str, Any] | None], str]:
    """Write the same images in some form to a place, and return the root that leads there."""

    def write(where: str, extra: dict[str, Any] | None = None) -> str:
        members = {**two_classes, **(extra or {})}
        if request.param == "folder":
            return str(write_tree(where, members))
        if request.param == "zip":
            return str(write_zip(f"{where}/photos.zip", members))
        if request.param == "tar":
            return str(write_tar(f"{where}/photos.tar", members))
        labels = {member.replace(".png", ".cls"): member.split("/")[0].encode() for member in members}
        return f"wds:{write_tar(f'{where}/photos.tar', {**members, **labels})}"

    return write


def test_the_same_images_elsewhere_are_the_same(place: Callable) -> None:
    here, there = (open_splits(DataConfig(root=place(where))) for where in ("here", "there"))
    assert identify(here) == identify(there)
    identity = identify(here)
    assert identity.classes == ("cat", "dog")
    assert identity.validation is not None
    assert (identity.train.images, identity.validation.images, identity.test) == (8, 2, None)


@pytest.mark.parametrize("extra", [{"cat/zzz.png": 3}, {"cat/0.png": 999}])
def test_an_image_more_or_another_one_is_another_set(extra: dict[str, int], place: Callable) -> None:
    here = identify(open_splits(DataConfig(root=place("here"))))
    other = open_splits(DataConfig(root=place("there", extra)))
    assert identify(other) != here
    assert identify(other).differences(here, {}, other)


def test_another_draw_is_another_set(place: Callable) -> None:
    root = place("here")
    one, other = (open_splits(DataConfig(root=root, split_seed=seed)) for seed in (0, 1))
    names = {
        part: [source.member(index) for index in range(len(source))] for part, source in one.parts().items() if source
    }
    told = identify(other).differences(identify(one), names, other)
    assert told
    assert told[0].startswith("the train images others, or in another order, from ")


def test_names_come_back_as_they_are(write_tree: Callable, tmp_path: Path) -> None:
    odd = ['a\n"b", c', "tab\tand ümlaut", "raw \udcff byte"]
    root = write_tree("odd", {f"{name}/{number}.png": number for name in odd for number in range(3)})
    splits = open_splits(DataConfig(root=str(root)))
    write_images(tmp_path / "images.csv.gz", splits)
    names = read_images(tmp_path / "images.csv.gz")
    assert sorted(names["train"] + names["validation"]) == sorted(f"{name}/{i}.png" for name in odd for i in range(3))
    with gzip.open(tmp_path / "images.csv.gz", "rt", encoding="utf-8", errors="surrogatepass", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == set(odd)
    assert [row["part"] for row in rows] == ["train"] * 6 + ["validation"] * 3
    (tmp_path / "images.csv.gz").write_bytes((tmp_path / "images.csv.gz").read_bytes()[:40])
    assert read_images(tmp_path / "images.csv.gz") == {}
    assert read_images(tmp_path / "none") == {}


def test_another_order_of_classes_is_told(write_tree: Callable, two_classes: dict[str, Any]) -> None:
    root = write_tree("set", two_classes)
    before = identify(open_splits(DataConfig(root=str(root))))
    (root / "classes.json").write_text('["dog", "cat"]')
    splits = open_splits(DataConfig(root=str(root)))
    told = identify(splits).differences(before, {}, splits)
    assert told == ["the classes in another order ('dog' in the place of 'cat')"]
    shutil.rmtree(root / "dog")
