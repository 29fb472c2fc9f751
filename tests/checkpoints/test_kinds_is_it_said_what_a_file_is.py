from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from widefield._core.errors import InputError
from widefield.checkpoints.files import read_checkpoint, read_weights, write_weights
from widefield.checkpoints.safetensors_files import CHECKSUM

STATE = {"w": torch.arange(1000.0), "b": torch.ones(3)}


def told(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            read_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert "weights_only" not in text
    return text


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(2))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        (b"<!DOCTYPE html><html>", "a web page", "download the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer", "git lfs pull"),
        (gzip.compress(b"x" * 50), "compressed with gzip", "unpack it"),
        (b"\x93NUMPY\x01\x00" + bytes(50), "a NumPy array", "safetensors"),
        (npz(), "an archive of NumPy arrays", "safetensors"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file", "safetensors"),
        (bytes(100) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow", "safetensors"),
        (
            json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}).encode(),
            "the index of weights that lie in 2 files, the first '1.safetensors'",
            "write them as one",
        ),
        (b"epoch,loss\n1,2\n", "text, 'epoch,loss'", "name the file"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(content: bytes, what: str, fix: str, tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        path = tmp_path / name
        path.write_bytes(content)
        text = told(path)
        assert what in text
        assert fix in text


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_newer_pickle_is_not_called_truncated(protocol: int, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    text = told(path)
    assert f"in protocol {protocol}: load it where it was made" in text
    assert "truncated" not in text
    path.write_bytes(pickle.dumps({"a": 1}, protocol))
    assert f"in protocol {protocol}" in told(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_protocol_3_is_read(zipped: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth", pickle_protocol=3, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_weights(tmp_path / "w.pth")[0]["w"], STATE["w"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_archive_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    text = told(path)
    assert "a TorchScript archive, whose code was not run: load it with torch.jit.load where you trust it" in text
    assert "truncated" not in text


def test_one_bit_of_a_pytorch_file_is_noticed_by_the_checksums_of_its_archive(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    content[content.find(struct.pack("<f", 500.0))] ^= 1
    path.write_bytes(content)
    assert torch.load(path)["w"][500] != 500, "torch does not compare them"
    assert "which is truncated or damaged (Bad CRC-32 for file 'w/data/0')" in told(path)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_weights(path)[0]["w"], STATE["w"])


def test_archives_that_hold_something_else_are_told(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("w/data/0", bytes(4000))
    assert "with 'w/data/0' twice" in told(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/cat.txt", "x")
    assert "a zip archive without 'data.pkl' (its first member is 'photos/cat.txt'): unpack it if" in told(path)


def test_an_archive_that_claims_more_than_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path)
    monkeypatch.setattr("widefield.checkpoints.torch_files.memory_bytes", lambda: 1000)
    assert "whose members claim 0 GB: copy or download it again, or use a machine with more memory" in told(path)


def test_a_pipe_or_a_device_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert f"a named pipe at {tmp_path / 'pipe'}" in told(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert "a device at" in told(tmp_path / "zero")


def raw(path: Path, header: bytes, body: bytes) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def test_a_name_twice_in_a_header_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    raw(path, b"{" + entry + b"," + entry + b"}", bytes(4))
    assert "with 'a' twice in its header" in told(path)
    raw(path, b'{"__metadata__":{"k":"1","k":"2"},' + entry + b"}", bytes(4))
    assert "with 'k' twice in its header" in told(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63]},
        {"dtype": "X32", "shape": [1], "data_offsets": [0, 4]},
        [],
    ],
)
def test_a_header_that_cannot_be_right_is_refused(entry: object, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    raw(path, json.dumps({"a": entry}).encode(), bytes(4))
    assert "which is truncated or of another kind" in told(path)


def test_every_bit_of_a_file_of_ours_is_guarded(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, {**STATE, "half": torch.ones(3, dtype=torch.bfloat16), "none": torch.ones(0)}, {"k": "v"})
    whole = path.read_bytes()
    tensors, metadata = read_weights(path)
    assert metadata == {"k": "v"}, "the checksum is not among what was written"
    assert CHECKSUM.encode() in whole
    length = struct.unpack("<Q", whole[:8])[0]
    for place in [*range(8, 8 + length, 7), *range(8 + length, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        # What is not noticed is a letter of the checksum's own name, or a blank after the header.
        with contextlib.suppress(InputError):
            found, _ = read_weights(path)
            assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "whose content differs from its checksum: copy or download it again, or drop" in told(path)


def test_equal_contents_give_equal_files(tmp_path: Path) -> None:
    metadata = {f"k{index}": "ü\n" for index in range(8)}
    for name in ("one", "two"):
        write_weights(tmp_path / name, STATE, metadata)
        metadata = dict(reversed(metadata.items()))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    save_file(STATE, tmp_path / "foreign")
    assert read_weights(tmp_path / "foreign")[1] == {}
    assert read_weights(tmp_path / "one")[1] == metadata
