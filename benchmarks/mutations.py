"""Ways to damage a run folder or the data of a run, drawn at random; `robustness.py` asks what comes of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STATE, TENSORS = "state.json", "tensors.safetensors"


def mutate(run: Path, data: Path, draws: random.Random) -> str:
    """Damage a run folder or its data in one way, and return which: "kind: what it was done to"."""
    kind = draws.choice(list(_KINDS))
    return f"{kind}: {_KINDS[kind](run, data, draws)}"


def _file(run: Path, draws: random.Random) -> Path:
    """Return a file of the run; those that a resumed run reads come as often as all others together."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    read = [path for path in files if "checkpoints" in path.parts or path.suffix in (".csv", ".yaml")]
    return draws.choice(read if read and draws.random() < 0.8 else files)


def _entry(run: Path, draws: random.Random) -> Path:
    """Return a file or a folder of the run."""
    folders = sorted(path for path in run.rglob("*") if path.is_dir())
    return draws.choice(folders) if folders and draws.random() < 0.3 else _file(run, draws)


def _rewrite(path: Path, change: Callable[[bytearray], bytes | bytearray]) -> None:
    path.write_bytes(change(bytearray(path.read_bytes())))


def _flip(run: Path, data: Path, draws: random.Random) -> str:
    path = _file(run, draws)
    count = draws.choice((1, 8, 4000))

    def change(content: bytearray) -> bytearray:
        for _ in range(count if content else 0):
            content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        return content

    _rewrite(path, change)
    return f"{count} bits of {path.relative_to(run)}"


def _truncate(run: Path, data: Path, draws: random.Random) -> str:
    path = _file(run, draws)
    length = draws.choice((0, 1, draws.randrange(path.stat().st_size + 1)))
    os.truncate(path, min(length, path.stat().st_size))
    return f"{path.relative_to(run)} to {length} bytes"


def _fill(run: Path, data: Path, draws: random.Random) -> str:
    path = _file(run, draws)
    value = draws.choice((b"\0", b"\xff", b" "))

    def change(content: bytearray) -> bytearray:
        start = draws.randrange(len(content) + 1)
        end = draws.randrange(start, len(content) + 1)
        content[start:end] = value * (end - start)
        return content

    _rewrite(path, change)
    return f"part of {path.relative_to(run)} with {value!r}"


def _append(run: Path, data: Path, draws: random.Random) -> str:
    path = _file(run, draws)
    with path.open("ab") as file:
        file.write(draws.choice((b"\n", b"garbage", b"\0" * 512)))
    return str(path.relative_to(run))


def _remove(run: Path, data: Path, draws: random.Random) -> str:
    path = _entry(run, draws)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return str(path.relative_to(run))


def _replace(run: Path, data: Path, draws: random.Random) -> str:
    path = _entry(run, draws)
    kinds: dict[str, Callable[[], Any]] = {
        "a folder": path.mkdir,
        "a folder with a file": lambda: (path.mkdir(), (path / "file").write_text("x")),
        "a pipe": lambda: os.mkfifo(path),
        "a file": lambda: path.write_text("[]"),
        "a link to nothing": lambda: path.symlink_to("nothing"),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a device": lambda: path.symlink_to("/dev/zero"),
    }
    kind = draws.choice(list(kinds))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    kinds[kind]()
    return f"{path.relative_to(run)} by {kind}"


def _link(run: Path, data: Path, draws: random.Random) -> str:
    path = _entry(run, draws)
    moved = run.parent / "elsewhere"
    path.rename(moved)
    path.symlink_to(moved)
    return f"{path.relative_to(run)} to the same elsewhere"


def _swap(run: Path, data: Path, draws: random.Random) -> str:
    one, other = _file(run, draws), _file(run, draws)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    return f"{one.relative_to(run)} with {other.relative_to(run)}"


def _stray(run: Path, data: Path, draws: random.Random) -> str:
    name = draws.choice(
        ("step_99999999", "step_00000000", "best/step_99999999.safetensors", ".step_1.partial", "best/x")
    )
    path = run / "checkpoints" / name
    path.parent.mkdir(exist_ok=True)
    kind = draws.choice(("file", "folder", "pipe"))
    {"file": path.touch, "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[kind]()
    return f"{kind} {name}"


def _checkpoint(run: Path, draws: random.Random) -> Path:
    steps = sorted((run / "checkpoints").glob("step_*"))
    return steps[-1] if draws.random() < 0.7 else draws.choice(steps)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from _leaves(part, (*path, key))


def _state(run: Path, data: Path, draws: random.Random) -> str:
    """Give a value of the state another type, or take it away, and write the checksum that fits."""
    path = _checkpoint(run, draws)
    content = json.loads((path / STATE).read_text())
    everywhere = list(_leaves(content["state"]))
    shallow = [where for where in everywhere if len(where) < 3]
    where = draws.choice(shallow if draws.random() < 0.7 else everywhere)
    new = draws.choice((None, "word", [], {}, -1, 1e300, True, [1, 2], {"a": 1}))
    if not where:
        content["state"] = new
    else:
        parent = content["state"]
        for key in where[:-1]:
            parent = parent[key]
        if type(parent[where[-1]]) is type(new) or draws.random() < 0.3:
            del parent[where[-1]]
            new = "nothing"
        else:
            parent[where[-1]] = new
    content["checksums"][STATE] = zlib.crc32(json.dumps(content["state"]).encode())
    (path / STATE).write_text(json.dumps(content))
    return f"{'/'.join(map(str, where))} of {path.name} to {new!r}"


def _tensors(run: Path, data: Path, draws: random.Random) -> str:
    """Change names, shapes or types of a checkpoint's tensors, and write the checksum that fits."""
    path = _checkpoint(run, draws)
    tensors = load_file(path / TENSORS)
    name = draws.choice(sorted(tensors))
    tensor = tensors.pop(name)
    how = draws.choice(("removed", "renamed", "flattened", "cut", "int8", "float64", "complex", "added"))
    changed = {
        "renamed": {f"{name}x": tensor},
        "flattened": {name: tensor.reshape(-1, 1)},
        "cut": {name: tensor.flatten()[: tensor.numel() // 2].clone()},
        "int8": {name: tensor.to(torch.int8)},
        "float64": {name: tensor.double()},
        "complex": {name: tensor.to(torch.complex64)},
        "added": {name: tensor, "model/other": tensor.clone()},
    }
    save_file({**tensors, **changed.get(how, {})}, path / TENSORS)
    content = json.loads((path / STATE).read_text())
    content["checksums"][TENSORS] = zlib.crc32((path / TENSORS).read_bytes())
    (path / STATE).write_text(json.dumps(content))
    return f"{name} of {path.name} {how}"


def _lines(run: Path, data: Path, draws: random.Random) -> str:
    path = run / draws.choice(("steps.csv", "metrics.csv"))
    lines = path.read_text().split("\n")
    index = draws.randrange(len(lines))
    how = draws.choice(("removed", "doubled", "emptied", "cut", "spoiled", "another number", "moved"))
    line = lines[index]
    if how == "doubled":
        lines.insert(index, line)
    elif how == "moved":
        lines.append(lines.pop(index))
    elif how == "removed":
        del lines[index]
    else:
        changes = {"emptied": "", "cut": line[: len(line) // 2], "spoiled": f"\x00,é;{line}"}
        lines[index] = changes.get(how, line.replace("1", "7"))
    path.write_text("\n".join(lines))
    return f"line {index} of {path.name} {how}"


def _config(run: Path, data: Path, draws: random.Random) -> str:
    path = run / "config.yaml"
    lines = path.read_text().split("\n")
    index = draws.choice([number for number, line in enumerate(lines) if ":" in line])
    name, _, value = lines[index].partition(":")
    new = draws.choice((" 7", " word", " null", " [1", " -1", " 0.25", " 1e999", " true", " '\\x1b[31m'"))
    lines[index] = f"{name}:{new}" if draws.random() < 0.8 else f"{name}x:{value}"
    path.write_text("\n".join(lines))
    return f"{name.strip()}:{value} to {lines[index].strip()!r}"


def _data(run: Path, data: Path, draws: random.Random) -> str:
    classes = sorted(data.iterdir())
    images = sorted(data.rglob("*.png"))
    image = draws.choice(images)
    how = draws.choice(("image removed", "image added", "image renamed", "class renamed", "class added", "all removed"))
    if how == "image removed":
        image.unlink()
    elif how == "image added":
        shutil.copy(image, image.with_name("zz.png"))
    elif how == "image renamed":
        image.rename(image.with_name("zz.png"))
    elif how == "class renamed":
        # To the other end of the order.
        classes[-1].rename(data / "#first")
    elif how == "class added":
        shutil.copytree(classes[0], data / "zz")
    else:
        shutil.rmtree(data)
    return how


_KINDS: dict[str, Callable[[Path, Path, random.Random], str]] = {
    "flipped": _flip,
    "truncated": _truncate,
    "filled": _fill,
    "appended to": _append,
    "removed": _remove,
    "replaced": _replace,
    "linked": _link,
    "swapped": _swap,
    "stray": _stray,
    "state edited": _state,
    "tensors edited": _tensors,
    "lines damaged": _lines,
    "config edited": _config,
    "data changed": _data,
}
