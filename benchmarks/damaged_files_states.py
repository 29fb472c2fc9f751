"""Damage to what a file holds: names, shapes, types, values, wrappers and pickles."""

from __future__ import annotations

import argparse
import pickle
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damaged_files_kinds import ALL, SAFE, TORCH, Mutated, Source, mutation
from safetensors.torch import save_file

# Another state dict in the same format.


def _write(path: Path, source: Source, state: Mapping[Any, Any]) -> None:
    if source.format in SAFE:
        # Whoever changes a file by hand keeps its header or drops it; here it is dropped.
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save({"state_dict": dict(state)}, path, _use_new_zipfile_serialization=source.format == "archive")


def _network_names(source: Source) -> list[str]:
    return [name for name in source.state if not name.startswith("decode_head.")]


def _drawn(source: Source, draw: random.Random, dims: int = 1) -> str:
    state = source.state
    return draw.choice(
        [name for name in _network_names(source) if state[name].is_floating_point() and state[name].dim() >= dims]
    )


@mutation(*ALL)
def drop_a_name(path: Path, source: Source, draw: random.Random) -> Mutated:
    gone = draw.choice(_network_names(source))
    _write(path, source, {name: tensor for name, tensor in source.state.items() if name != gone})
    return Mutated(detail=gone)


@mutation(*ALL)
def rename_a_name(path: Path, source: Source, draw: random.Random) -> Mutated:
    old = draw.choice(_network_names(source))
    _write(path, source, {(name + "x" if name == old else name): tensor for name, tensor in source.state.items()})
    return Mutated(detail=old)


@mutation(*ALL)
def double_a_name(path: Path, source: Source, draw: random.Random) -> Mutated:
    name = draw.choice(_network_names(source))
    prefix = "backbone." if name.startswith("backbone.") else ""
    _write(path, source, {**source.state, f"{prefix}module.{name}": source.state[name].clone()})
    return Mutated(detail=name)


@mutation(*TORCH)
def a_key_that_is_no_name(path: Path, source: Source, draw: random.Random) -> Mutated:
    key = draw.choice((0, None, 1.5, (1, 2)))
    _write(path, source, {**source.state, key: torch.ones(1)})
    return Mutated(detail=repr(key))


@mutation(*ALL)
def transpose(path: Path, source: Source, draw: random.Random) -> Mutated:
    names = [name for name in _network_names(source) if source.state[name].dim() > 1]
    name = draw.choice([name for name in names if source.state[name].shape[0] != source.state[name].shape[1]])
    _write(path, source, {**source.state, name: source.state[name].transpose(0, 1)})
    return Mutated(detail=name)


@mutation(*ALL)
def flatten(path: Path, source: Source, draw: random.Random) -> Mutated:
    name = _drawn(source, draw, 2)
    _write(path, source, {**source.state, name: source.state[name].flatten()})
    return Mutated(detail=name)


@mutation(*ALL)
def another_type(path: Path, source: Source, draw: random.Random) -> Mutated:
    name = _drawn(source, draw)
    types = [torch.int8, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16]
    dtype = draw.choice(types)
    _write(path, source, {**source.state, name: source.state[name].to(dtype)})
    return Mutated(detail=f"{name} {dtype}")


@mutation(*ALL)
def another_type_throughout(path: Path, source: Source, draw: random.Random) -> Mutated:
    dtype = draw.choice([torch.int8, torch.int32, torch.complex64, torch.float8_e5m2])
    _write(path, source, {name: tensor.to(dtype) for name, tensor in source.state.items()})
    return Mutated(detail=str(dtype))


@mutation(*ALL)
def double_precision(path: Path, source: Source, draw: random.Random) -> None:
    _write(path, source, {n: t.double() if t.is_floating_point() else t for n, t in source.state.items()})


@mutation(*TORCH)
def another_layout(path: Path, source: Source, draw: random.Random) -> Mutated:
    name, kind = _drawn(source, draw), draw.choice(("sparse", "meta", "expanded", "shared"))
    tensor = source.state[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = {
            "sparse": lambda: tensor.to_sparse(),
            "meta": lambda: tensor.to("meta"),
            "expanded": lambda: tensor.flatten()[:1].expand(tensor.shape),
            "shared": lambda: next(t for n, t in source.state.items() if n != name and t.is_floating_point()),
        }[kind]()
        _write(path, source, {**source.state, name: changed})
    return Mutated(detail=f"{name} {kind}")


@mutation(*ALL)
def not_finite(path: Path, source: Source, draw: random.Random) -> Mutated:
    name, value = _drawn(source, draw), draw.choice((float("nan"), float("inf"), -float("inf")))
    tensor = source.state[name].clone()
    tensor.view(-1)[draw.randrange(tensor.numel())] = value
    _write(path, source, {**source.state, name: tensor})
    return Mutated(detail=f"{name} {value}")


@mutation(*ALL)
def negative_variance(path: Path, source: Source, draw: random.Random) -> Mutated:
    there = [name for name in _network_names(source) if name.endswith("running_var")]
    name = draw.choice(there or _network_names(source))
    value = -source.state[name] if there else torch.full_like(source.state[name], float("nan"))
    _write(path, source, {**source.state, name: value})
    return Mutated(detail=name)


@mutation(*TORCH)
def nest_deeper(path: Path, source: Source, draw: random.Random) -> None:
    torch.save({"state_dict": {"model": source.state}}, path)


@mutation(*TORCH)
def extra_wrappers(path: Path, source: Source, draw: random.Random) -> None:
    extra = {"epoch": 3, "args": argparse.Namespace(lr=1.0), "best": np.float64(81.0), "optimizer": {"state": {}}}
    torch.save({**extra, "meta": {"mmengine_version": "0.7", "time": "now"}, "model": source.state}, path)


@mutation(*TORCH)
def all_under_module(path: Path, source: Source, draw: random.Random) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in source.state.items()}, path)


# Pickles.


class Canary:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path.with_name("canary"),)


@mutation(*TORCH)
def code_in_the_pickle(path: Path, source: Source, draw: random.Random) -> Mutated:
    where = draw.choice(("meta", "args", "state_dict"))
    content: dict[str, Any] = {"model": source.state, where: Canary(path)}
    torch.save(content, path, _use_new_zipfile_serialization=source.format == "archive")
    return Mutated(detail=where)


@mutation(*TORCH)
def another_protocol(path: Path, source: Source, draw: random.Random) -> Mutated:
    protocol = draw.choice((3, 4, 5))
    zipped = source.format == "archive"
    torch.save(source.state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return Mutated(detail=f"protocol {protocol}")


@mutation("pickle")
def a_plain_pickle(path: Path, source: Source, draw: random.Random) -> Mutated:
    protocol = draw.randrange(6)
    path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in source.state.items()}, protocol))
    return Mutated(detail=f"protocol {protocol}")
