from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from widefield._core.errors import InputError
from widefield.data import DataConfig, UndecodableImageError, open_split, open_splits

Write = Callable[..., Path]
Members = dict[str, bytes | int]


def samples(first: int, count: int) -> Members:
    members: Members = {}
    for number in range(first, first + count):
        members[f"part/s{number}.png"] = number
        members[f"part/s{number}.cls"] = str(number % 3).encode()
    return members


@pytest.fixture
def shards(write_tar: Write) -> str:
    for number in range(3):
        folder = write_tar(f"shards/{number:02d}.tar", samples(10 * number, 7)).parent
    return f"{folder}/{{00..02}}.tar"


def test_shards_hold_what_webdataset_reads_from_them(shards: str):
    config = DataConfig(root=f"wds:{shards}")
    splits = open_splits(config)
    assert splits.train.classes == ("0", "1", "2")
    ours = {
        (image.tobytes(), label)
        for part in (splits.train, splits.validation)
        for image, label in (part.load(index) for index in range(len(part)))
    }
    theirs = set()
    for shard in expand_urls(shards):
        with open(shard, "rb") as stream:
            for sample in group_by_keys(tar_file_expander([{"url": shard, "stream": stream}])):
                with Image.open(io.BytesIO(sample["png"])) as image:
                    theirs.add((image.convert("RGB").tobytes(), int(sample["cls"])))
    assert len(theirs) == 21
    assert ours == theirs


def test_shards_are_put_in_splits_by_their_names(write_tar: Write):
    write_tar("shards/set-train-000.tar", samples(0, 9))
    write_tar("shards/set-train-001.tar", samples(10, 9))
    root = write_tar("shards/set_val_000.tar", samples(20, 6)).parent
    splits = open_splits(DataConfig(root=f"wds:{root}"))
    assert (len(splits.train), len(splits.validation), splits.test) == (18, 6, None)
    assert splits.validation.name(0).endswith("set_val_000.tar/part/s20.png")
    only = open_split(DataConfig(root=f"wds:{root}/set_val_000.tar"), "validation")
    assert len(only) == 6


def test_labels_come_from_the_json_and_names_from_the_list_beside(write_tar: Write):
    members: Members = {}
    for number in range(8):
        members[f"{number}.jpg"] = number
        members[f"{number}.json"] = json.dumps({"label": number % 2, "width": 3}).encode()
    root = write_tar("shards/0.tar", members).parent
    (root / "_info.json").write_text(json.dumps({"splits": {}, "classes": ["cat", "dog"]}))
    splits = open_splits(DataConfig(root=f"wds:{root}/0.tar", validation_fraction=0.5))
    assert splits.train.classes == ("cat", "dog")
    assert splits.train.load(0)[1] == int(splits.train.name(0).split("/")[-1][0]) % 2


def test_labels_may_be_names(write_tar: Write):
    members: Members = {}
    for number in range(8):
        members[f"{number}.png"] = number
        members[f"{number}.cls"] = (b"dog", b"cat")[number % 2]
    root = write_tar("shards/0.tar", members).parent
    source = open_splits(DataConfig(root=f"wds:{root}")).train
    assert source.classes == ("cat", "dog")
    (root / "classes.json").write_text('["cat", "cow"]')
    with pytest.raises(InputError, match="labels that are in the list of class names beside the shards, but got 'dog'"):
        open_splits(DataConfig(root=f"wds:{root}"))


def test_a_damaged_sample_is_named(write_tar: Write):
    path = write_tar("shards/val-0.tar", samples(0, 6) | {"part/s3.png": b"broken"})
    source = open_split(DataConfig(root=f"wds:{path}"), "validation")
    with pytest.raises(UndecodableImageError, match=r"val-0\.tar/part/s3\.png' \(no known image format\)"):
        source.load(3)
    path.unlink()
    with pytest.raises(UndecodableImageError, match=r"s0\.png' \(No such file"):
        source.load(0)


@pytest.mark.parametrize("sidecar", [{}, {"5.json": b"{}"}, {"5.json": b"not json"}, {"5.cls": b""}])
def test_a_sample_without_a_label_is_named(sidecar: Members, write_tar: Write):
    path = write_tar("0.tar", samples(0, 4) | {"5.png": 5} | sidecar)
    with pytest.raises(InputError) as caught:
        open_splits(DataConfig(root=f"wds:{path}"))
    assert str(caught.value) == (
        f"Expected a label for every sample, in a .cls or in a .json, but got none for '{path}/5.png': "
        "add it as text in the .cls or under 'label' in the .json."
    )


def test_labels_that_do_not_fit_together_are_refused(write_tar: Write):
    path = write_tar("a/0.tar", samples(0, 4) | {"5.png": 5, "5.cls": b"cat"})
    with pytest.raises(InputError, match="labels that are all numbers or all names, but got 4 numbers and 1 names"):
        open_splits(DataConfig(root=f"wds:{path}"))
    path = write_tar("b/0.tar", samples(0, 4) | {"5.png": 5, "5.cls": b"-1"})
    with pytest.raises(InputError, match=r"labels from 0 to 2, .* but got labels from -1 to 2"):
        open_splits(DataConfig(root=f"wds:{path}"))
    path = write_tar("c/0.tar", {"5.png": 5, "5.cls": b"0"})
    with pytest.raises(InputError, match="at least 2 classes, but got 1 in the shards"):
        open_splits(DataConfig(root=f"wds:{path}"))
    path = write_tar("d/0.tar", {"5.txt": b"x", "5.cls": b"0"})
    with pytest.raises(InputError, match="images in the shards, but got none in 1 shards"):
        open_splits(DataConfig(root=f"wds:{path}"))


def test_shards_that_are_not_there_are_counted(write_tar: Write, tmp_path: Path):
    folder = write_tar("shards/0.tar", samples(0, 4)).parent
    with pytest.raises(
        InputError, match=r"but got 2 of 3 missing, '.*/1\.tar' being the first: correct the path or the"
    ):
        open_splits(DataConfig(root=f"wds:{folder}/{{0..2}}.tar"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"Expected WebDataset shards \(\*\.tar\), but got none in"):
        open_splits(DataConfig(root=f"wds:{tmp_path / 'empty'}"))


@pytest.mark.parametrize("address", ["https://host/0.tar", "s3://bucket/{00..10}.tar", "pipe:cat 0.tar"])
def test_shards_elsewhere_are_refused(address: str):
    with pytest.raises(
        InputError, match=r"Expected WebDataset shards on a local disk, but got the address .*: download"
    ):
        open_splits(DataConfig(root=f"wds:{address}"))
