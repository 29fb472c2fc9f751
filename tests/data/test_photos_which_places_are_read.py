"""Images without labels are found in a file, a folder or an archive, and what is damaged is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from widefield._core.errors import InputError
from widefield.data import UndecodableImageError, open_photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    (place / "deep").mkdir(parents=True)
    Image.new("RGB", (6, 4), "red").save(place / "b.png")
    Image.new("L", (5, 3), 7).save(place / "deep" / "a.png")
    (place / "notes.txt").write_text("no image")
    return place


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("is_zip", [False, True])
def test_a_folder_and_its_archive_hold_the_same(is_zip: bool, folder: Path) -> None:
    photos = open_photos(zipped(folder) if is_zip else folder)
    assert photos.members == ["b.png", "deep/a.png"]
    assert len(photos) == 2
    assert [photos.load(index).size for index in range(2)] == [(6, 4), (5, 3)]
    assert {photos.load(index).mode for index in range(2)} == {"RGB"}


def test_one_file_is_a_list_of_one(folder: Path) -> None:
    photos = open_photos(str(folder / "b.png"))
    assert (len(photos), photos.load(0).getpixel((0, 0))) == (1, (255, 0, 0))
    assert photos.name(0) == f"{folder.as_posix()}/b.png"


@pytest.mark.parametrize(("place", "part"), [("nowhere", "got nothing at"), ("empty", "without any")])
def test_a_place_without_images_is_refused(place: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=part):
        open_photos(tmp_path / place)


def test_what_cannot_be_decoded_is_named(folder: Path) -> None:
    (folder / "c.png").write_bytes(b"never an image")
    photos = open_photos(folder)
    with pytest.raises(UndecodableImageError, match=r"c\.png' \(no known image format\): replace or delete it\.$"):
        photos.load(1)


def test_a_damaged_member_of_an_archive_is_named(folder: Path) -> None:
    path = zipped(folder)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("b.png").header_offset + 30 + len("b.png")
    content[start + 8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UndecodableImageError, match=r"b\.png' \(Bad CRC-32.*: replace or delete it\.$"):
        open_photos(path).load(0)
