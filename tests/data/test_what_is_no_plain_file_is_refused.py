from __future__ import annotations

import io
import logging
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from widefield._core.errors import InputError
from widefield.data import DataConfig, UndecodableImageError, open_photos, open_splits, read_image
from widefield.data.archive import open_archive
from widefield.data.hugging_face import hugging_face_parts

Members = dict[str, int]
Write = Callable[..., Path]


@pytest.fixture
def two_classes() -> Members:
    return {f"{name}/{number}.png": number for name in ("cat", "dog") for number in range(4)}


def test_pipes_devices_and_sockets_are_no_images_and_nobody_waits_for_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(UndecodableImageError, match=rf"{name}\.png' \((no ordinary file|Is a directory)"):
            read_image(tmp_path / f"{name}.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        with pytest.raises(UndecodableImageError, match=r"socket\.png' \("):
            read_image(tmp_path / "socket.png")
    photos = open_photos(tmp_path)
    with pytest.raises(UndecodableImageError, match=r"pipe\.png' \(no ordinary file"):
        photos.load(photos.members.index("pipe.png"))


@pytest.mark.parametrize("name", ["root.zip", "root.tar", "root"])
def test_a_pipe_is_no_archive(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name}', which is no ordinary file: give the folder or archive"):
        open_splits(DataConfig(root=str(tmp_path / name)))


def test_an_image_of_too_many_pixels_is_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A library may have lifted Pillow's own limit for the whole process.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    stream = io.BytesIO()
    Image.new("1", (13_400, 13_400)).save(stream, "PNG")
    (tmp_path / "bomb.png").write_bytes(stream.getvalue())
    with pytest.raises(UndecodableImageError, match=r"13400 x 13400 pixels, which could be a decompression bomb"):
        read_image(tmp_path / "bomb.png")


def test_a_member_that_claims_an_absurd_size_is_refused_unread(
    two_classes: Members, write_zip: Write, write_tar: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = open_archive(write_zip("root.zip", two_classes))
    store._archive().getinfo("cat/0.png").file_size = 1 << 40
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes, more than the 1,073,741,824 that an image can have"):
        store.read("cat/0.png")
    monkeypatch.setattr("widefield.data.image.MOST_BYTES", 50)
    with pytest.raises(ValueError, match="more than the 50 that"):
        open_archive(write_tar("other.tar", two_classes)).read("cat/1.png")
    (tmp_path / "large.png").write_bytes(bytes(51))
    with pytest.raises(UndecodableImageError, match=r"51 bytes, more than the 50 that an image can have"):
        read_image(tmp_path / "large.png")


def test_a_sparse_member_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "root.tar"
    # A map of one piece of 3 bytes at 0, before the content.
    content = b"1\n0\n3\n".ljust(512, b"\0") + b"abc"
    info = tarfile.TarInfo("cat/0.png")
    info.size = len(content)
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "cat/0.png",
        "GNU.sparse.realsize": "1000",
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match=r"with the sparse member 'cat/0\.png': pack it again without --sparse"):
        open_archive(path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_out_of_an_archive_are_told_and_left_out(
    kind: str, write_zip: Write, write_tar: Write, two_classes: Members, caplog: pytest.LogCaptureFixture
) -> None:
    members = {**two_classes, "../../etc/0.png": 1, "cat/../../0.png": 2}
    path = (write_zip if kind == "zip" else write_tar)(f"root.{kind}", members)
    with caplog.at_level(logging.WARNING):
        store = open_archive(path)
    assert store.tree.images("") == sorted(two_classes)
    assert "2 members lead out of it and are left out, such as '../../etc/0.png'" in caplog.text


def test_two_members_of_one_name_are_told(
    two_classes: Members, write_zip: Write, image_bytes: Callable[[int], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_zip("root.zip", two_classes)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("cat/0.png", image_bytes(3))
    with caplog.at_level(logging.WARNING):
        store = open_archive(path)
    assert "1 members have the name of another; the last of each is read" in caplog.text
    assert store.read("cat/0.png") == image_bytes(3)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_whatever_is_damaged_in_an_archive_gets_one_sentence(
    kind: str, write_zip: Write, write_tar: Write, two_classes: Members
) -> None:
    path = (write_zip if kind == "zip" else write_tar)(f"root.{kind}", two_classes)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), max(len(whole) // 150, 1)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x81]) + whole[place + 1 :])
        try:
            store = open_archive(path)
            for name in store.tree.images(""):
                open_photos(path).load(store.tree.images("").index(name))
        except InputError:
            refused += 1
    assert refused > 20


def test_links_out_of_a_folder_are_followed_and_loops_are_not(tmp_path: Path, two_classes: Members) -> None:
    outside = tmp_path / "outside"
    for member in two_classes:
        (outside / member).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(outside / member)
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(outside / "cat")
    (root / "dog").symlink_to(outside / "dog")
    (outside / "cat" / "again").symlink_to(root)
    (outside / "dog" / "self").symlink_to(outside / "dog")
    expected = sorted(two_classes)
    found = open_photos(root).members
    assert [name for name in found if name.count("/") == 1] == expected
    assert len(found) < 40, "a loop ends"
    (root / "wolf").symlink_to(outside / "dog")
    assert {name.split("/")[0] for name in open_photos(root).members} == {"cat", "dog", "wolf"}


def test_no_code_of_a_data_set_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load_dataset(location: str, **settings: Any) -> object:
        asked.update(settings)
        raise ValueError("seen")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match="seen"):
        hugging_face_parts("somebody/images")
    assert asked["trust_remote_code"] is False
    with pytest.raises(InputError, match="the address 's3://bucket/x': download it and give its folder"):
        hugging_face_parts("s3://bucket/x")
