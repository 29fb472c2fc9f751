"""Damage to the bytes of a file: flips, gaps, other files in its place, archives and headers changed."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damaged_files_kinds import ALL, SAFE, TORCH, Mutated, Source, is_guarded, mutation
from torch import nn

# Bytes.


def _flip(path: Path, source: Source, draw: random.Random, first: int, last: int, bits: int) -> Mutated:
    content = bytearray(path.read_bytes())
    places = [draw.randrange(max(first, 0), min(last, len(content))) for _ in range(bits)]
    for place in places:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    told = ", ".join(map(str, places[:4])) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
    return Mutated(detail=f"bits at {told}", is_guarded=is_guarded(source))


@mutation(*ALL)
def flip_anywhere(path: Path, source: Source, draw: random.Random) -> Mutated:
    return _flip(path, source, draw, 0, path.stat().st_size, 1)


@mutation(*ALL)
def flip_at_the_start(path: Path, source: Source, draw: random.Random) -> Mutated:
    return _flip(path, source, draw, 0, 1500, 1)


@mutation(*ALL)
def flip_at_the_end(path: Path, source: Source, draw: random.Random) -> Mutated:
    return _flip(path, source, draw, path.stat().st_size - 1500, path.stat().st_size, 1)


@mutation(*ALL)
def flip_many(path: Path, source: Source, draw: random.Random) -> Mutated:
    return _flip(path, source, draw, 0, path.stat().st_size, 4000)


@mutation("archive", "card")
def flip_the_body(path: Path, source: Source, draw: random.Random) -> Mutated:
    size = path.stat().st_size
    return _flip(path, source, draw, size // 3, 2 * size // 3, 1)


@mutation(*ALL)
def truncate(path: Path, source: Source, draw: random.Random) -> Mutated:
    size = draw.randrange(path.stat().st_size)
    path.write_bytes(path.read_bytes()[:size])
    return Mutated(detail=f"{size} bytes left")


@mutation(*ALL)
def blank_a_block(path: Path, source: Source, draw: random.Random) -> Mutated:
    content = bytearray(path.read_bytes())
    start = draw.randrange(max(len(content) - 4096, 1))
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)
    return Mutated(detail=f"at {start}", is_guarded=is_guarded(source))


@mutation(*ALL)
def leave_out_bytes(path: Path, source: Source, draw: random.Random) -> Mutated:
    content = path.read_bytes()
    start, count = draw.randrange(len(content)), draw.choice((1, 8, 512))
    path.write_bytes(content[:start] + content[start + count :])
    return Mutated(detail=f"{count} at {start}", is_guarded=is_guarded(source))


@mutation(*ALL)
def append_bytes(path: Path, source: Source, draw: random.Random) -> Mutated:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.choice((1, 100, 70_000))))
    return Mutated(is_guarded=is_guarded(source))


@mutation(*ALL)
def put_bytes_before(path: Path, source: Source, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.choice((1, 16, 512))) + path.read_bytes())


@mutation(*ALL)
def empty(path: Path, source: Source, draw: random.Random) -> None:
    path.write_bytes(b"")


# Other files in its place.


@mutation(*ALL)
def another_file(path: Path, source: Source, draw: random.Random) -> Mutated:
    array = io.BytesIO()
    np.savez(array, a=np.ones(3))
    contents = {
        "page": b"<!DOCTYPE html><html><body>Sign in</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
        "gzip": gzip.compress(path.read_bytes()),
        "index": json.dumps({"metadata": {}, "weight_map": {"a": "one.safetensors"}}).encode(),
        "npz": array.getvalue(),
        "npy": b"\x93NUMPY\x01\x00" + bytes(80),
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(80),
        "text": b"epoch,loss\n1,2\n",
        "noise": draw.randbytes(3000),
        "zeros": bytes(3000),
    }
    kind = draw.choice(list(contents))
    path.write_bytes(contents[kind])
    return Mutated(detail=kind)


@mutation(*TORCH)
def torchscript(path: Path, source: Source, draw: random.Random) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))


@mutation(*TORCH)
def whole_module(path: Path, source: Source, draw: random.Random) -> None:
    torch.save(nn.Linear(2, 2), path)


# Archives.


def _repacked(path: Path, change: Callable[[str, bytes], list[tuple[str, bytes]]], compression: int = 0) -> None:
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, content in members:
            for pair in change(name, content):
                archive.writestr(*pair)


def _member(path: Path, draw: random.Random) -> str:
    with zipfile.ZipFile(path) as archive:
        needed = [name for name in archive.namelist() if "/data" in name and "/." not in name]
    return draw.choice(needed)


@mutation("archive")
def drop_a_member(path: Path, source: Source, draw: random.Random) -> Mutated:
    gone = _member(path, draw)
    _repacked(path, lambda name, content: [] if name == gone else [(name, content)])
    return Mutated(detail=gone)


@mutation("archive")
def rename_a_member(path: Path, source: Source, draw: random.Random) -> Mutated:
    old = _member(path, draw)
    _repacked(path, lambda name, content: [(name + "x" if name == old else name, content)])
    return Mutated(detail=old)


@mutation("archive")
def double_a_member(path: Path, source: Source, draw: random.Random) -> Mutated:
    twice = _member(path, draw)
    _repacked(path, lambda name, content: [(name, content)] + [(name, bytes(len(content)))] * (name == twice))
    return Mutated(detail=twice)


@mutation("archive")
def shorten_a_member(path: Path, source: Source, draw: random.Random) -> Mutated:
    short = _member(path, draw)
    _repacked(path, lambda name, content: [(name, content[: len(content) // 2] if name == short else content)])
    return Mutated(detail=short)


@mutation("archive")
def compress_members(path: Path, source: Source, draw: random.Random) -> None:
    _repacked(path, lambda name, content: [(name, content)], zipfile.ZIP_DEFLATED)


@mutation("archive")
def another_top_folder(path: Path, source: Source, draw: random.Random) -> None:
    _repacked(path, lambda name, content: [("../" + name, content)])


# Headers of safetensors.


def _header(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _with_header(path: Path, header: Mapping[str, Any] | bytes, body: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@mutation(*SAFE)
def change_the_header(path: Path, source: Source, draw: random.Random) -> Mutated:
    header, body = _header(path)
    name = draw.choice([name for name in header if name != "__metadata__" and "decode_head" not in name])
    kind = draw.choice(("dtype", "shape", "negative", "huge", "offsets", "gone", "length"))
    entry = header[name]
    if kind == "dtype":
        entry["dtype"] = "I32" if entry["dtype"] == "F32" else "F64"
    elif kind == "shape":
        entry["shape"] = [1, *entry["shape"]]
    elif kind == "negative":
        entry["shape"] = [-1, *entry["shape"]]
    elif kind == "huge":
        entry["shape"] = [2**62, *entry["shape"]]
    elif kind == "offsets":
        entry["data_offsets"] = [entry["data_offsets"][0] + 4, entry["data_offsets"][1] + 4]
    elif kind == "gone":
        del header[name]
    _with_header(path, header, body)
    if kind == "length":
        path.write_bytes(struct.pack("<Q", draw.choice((2**63, 10**9, 0))) + path.read_bytes()[8:])
    return Mutated(detail=f"{name} {kind}")


@mutation(*SAFE)
def a_name_twice_in_the_header(path: Path, source: Source, draw: random.Random) -> None:
    header, body = _header(path)
    name = draw.choice([name for name in header if name != "__metadata__"])
    entry = f"{json.dumps(name)}: {json.dumps(header[name])}".encode()
    text = json.dumps(header).encode()
    _with_header(path, text[:-1] + b", " + entry + b"}", body)


@mutation(*SAFE)
def two_names_swapped(path: Path, source: Source, draw: random.Random) -> Mutated:
    header, body = _header(path)
    kinds: dict[str, list[str]] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            kinds.setdefault(json.dumps([entry["dtype"], entry["shape"]]), []).append(name)
    one, other = draw.sample(draw.choice([names for names in kinds.values() if len(names) > 1]), 2)
    header[one], header[other] = header[other], header[one]
    _with_header(path, header, body)
    return Mutated(detail=f"{one} {other}", is_guarded=is_guarded(source))


@mutation("card")
def change_the_card(path: Path, source: Source, draw: random.Random) -> Mutated:
    header, body = _header(path)
    metadata = header["__metadata__"]
    card = json.loads(metadata["widefield"])
    name = draw.choice(("hf_hub:a/b", "local-dir:/tmp/x", "../../x", "resnet18; rm"))
    option = draw.choice(("pretrained=true", "checkpoint_path=/etc/passwd", "pretrained_cfg_overlay={file: x}"))
    changes: dict[str, Any] = {
        "name": lambda: card["model"].update(name=name),
        "option": lambda: card["model"].update(options=[option]),
        "kernel": lambda: card["model"].update(kernel_sizes=[10001] * 4),
        "depths": lambda: card["model"].update(options=["depths=[1000000000, 1, 1, 1]"]),
        "root": lambda: card["data"].update(root="pipe:cat /etc/passwd"),
        "classes": lambda: card.update(classes=["one"]),
        "size": lambda: card["data"].update(image_size=10**9),
        "nan": lambda: card["data"].update(mean=[float("nan")] * 3),
        "missing": lambda: card.pop("classes"),
        "list": lambda: card.update(model=[]),
        "none": lambda: None,
    }
    kind = draw.choice(list(changes))
    changes[kind]()
    text = "[" * 100_000 if kind == "none" else json.dumps(card)
    # Without its checksum: what is on a card must hold by itself.
    header["__metadata__"] = {"widefield": text}
    _with_header(path, header, body)
    return Mutated(detail=f"{kind} {name if kind == 'name' else ''}{option if kind == 'option' else ''}")
