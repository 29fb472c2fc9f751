from __future__ import annotations

import logging
import multiprocessing
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from widefield._core.errors import InputError
from widefield.data import DataConfig, UndecodableImageError, open_split, open_splits
from widefield.data.archive import open_archive

Write = Callable[..., Path]
Members = dict[str, bytes | int]


def test_a_truncated_zip_is_named(two_classes: Members, write_zip: Write):
    path = write_zip("root.zip", two_classes)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root=str(path)))
    assert str(caught.value) == (
        f"Expected a complete zip archive, but got {str(path)!r}, which is truncated or damaged: "
        "copy or download it again."
    )


@pytest.mark.parametrize("cut", [700, 5 * 1024, 9_800])
def test_a_truncated_tar_is_named(cut: int, two_classes: Members, write_tar: Write):
    path = write_tar("root.tar", two_classes)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"Expected a complete tar archive, but got .* which is truncated"):
        open_splits(DataConfig(root=str(path)))


def test_a_tar_with_a_broken_header_inside_does_not_end_there_in_silence(two_classes: Members, write_tar: Write):
    path = write_tar("root.tar", two_classes)
    content = bytearray(path.read_bytes())
    content[5 * 1024 : 5 * 1024 + 100] = b"?" * 100
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"Expected a complete tar archive, but got .* which is truncated or damaged"):
        open_splits(DataConfig(root=str(path)))


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_that_is_not_the_archive_it_is_called_is_refused(kind: str, tmp_path: Path):
    path = tmp_path / f"root.{kind}"
    path.write_bytes(b"plain text " * 100)
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root=str(path)))
    assert str(caught.value) == (
        f"Expected a {kind} archive, but got {str(path)!r}, which is none: "
        "give the archive or folder that holds the images."
    )


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path):
    path = tmp_path / "notes.txt"
    path.write_text("x")
    with pytest.raises(
        InputError, match=r"Expected a folder, a \.zip or a \.tar of images, but got the file .*notes\.txt"
    ):
        open_splits(DataConfig(root=str(path)))


@pytest.mark.parametrize(("name", "mode"), [("root.tar.gz", "w:gz"), ("root.tar", "w:xz"), ("root/train.tgz", "w:gz")])
def test_a_compressed_tar_is_refused_with_a_way_out(name: str, mode: str, two_classes: Members, write_tar: Write):
    path = write_tar(name, two_classes, mode)
    root = path.parent if "/" in name else path
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root=str(root)))
    assert str(caught.value) == (
        "Expected an uncompressed tar, whose members can be read in any order, "
        f"but got the compressed {str(path)!r}: unpack it, or pack the images as a .zip."
    )


def test_a_zip_without_the_suffix_is_still_a_zip(two_classes: Members, write_zip: Write):
    assert len(open_splits(DataConfig(root=str(write_zip("root.data", two_classes)))).train) == 8


def test_a_damaged_member_is_named(two_classes: Members, write_zip: Write, image_bytes: Callable[[int], bytes]):
    path = write_zip("root/val.zip", two_classes)
    content = path.read_bytes()
    body = image_bytes(3)
    path.write_bytes(content.replace(body, body[:-20] + b"?" * 20))
    source = open_split(DataConfig(root=str(path.parent)), "validation")
    with pytest.raises(UndecodableImageError, match=r"val\.zip/cat/3\.png' \(Bad CRC-32"):
        source.load(3)


def test_links_in_a_tar_lead_to_their_images(write_tar: Write, two_classes: Members, caplog: pytest.LogCaptureFixture):
    path = write_tar("root.tar", two_classes)
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("cat/hard.png", tarfile.LNKTYPE, "dog/0.png"),
            ("cat/soft.png", tarfile.SYMTYPE, "../dog/1.png"),
            ("cat/dead.png", tarfile.SYMTYPE, "gone.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    with caplog.at_level(logging.WARNING):
        store = open_archive(path)
    assert store.read("cat/hard.png") == store.read("dog/0.png")
    assert store.read("cat/soft.png") == store.read("dog/1.png")
    assert "cat/dead.png" not in store.tree.images("")
    assert "the link cat/dead.png leads to nothing" in caplog.text


def _loaded(source, queue) -> None:
    queue.put([source.load(index)[0].tobytes() for index in range(len(source))])


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_forked_child_and_its_parent_read_the_same_archive_at_once(kind: str, write_zip: Write, write_tar: Write):
    members = {f"{name}/{number}.png": number for name in ("cat", "dog") for number in range(60)}
    root = (write_zip if kind == "zip" else write_tar)(f"root/val.{kind}", members).parent
    source = open_split(DataConfig(root=str(root)), "validation")
    expected = [source.load(index)[0].tobytes() for index in range(len(source))]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_loaded, args=(source, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [source.load(index)[0].tobytes() for index in range(len(source))] == expected
    assert [queue.get(timeout=60) for _ in children] == [expected] * 2
    for child in children:
        child.join()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_travels_to_a_spawned_process(kind: str, write_zip: Write, write_tar: Write, two_classes: Members):
    root = (write_zip if kind == "zip" else write_tar)(f"root/val.{kind}", two_classes).parent
    source = open_split(DataConfig(root=str(root)), "validation")
    image = source.load(4)[0]
    assert pickle.loads(pickle.dumps(source)).load(4)[0].tobytes() == image.tobytes()
