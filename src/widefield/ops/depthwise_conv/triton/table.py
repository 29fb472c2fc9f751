"""Measured tiles: one JSON file for each architecture, keyed by buckets of shapes. Nothing else is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

from widefield._core.checks import check
from widefield._core.files import write_text_atomically
from widefield.ops.backends import Pass
from widefield.ops.depthwise_conv.problem import Problem
from widefield.ops.depthwise_conv.triton.tiles import TileConfig

FOLDER = Path(__file__).with_name("tables")

Entries = Mapping[str, TileConfig]


def key(problem: Problem, pass_: Pass) -> str:
    """Return the bucket of a problem: everything that decides which tiles are best, sizes up to a factor of 2."""
    kernel_h, kernel_w = problem.kernel_size
    return "/".join(
        (
            str(problem.dtype).removeprefix("torch."),
            pass_,
            problem.layout,
            f"{_bucket(problem.height)}x{_bucket(problem.width)}",
            f"k{_bucket(kernel_h)}x{_bucket(kernel_w)}",
            f"n{_bucket(problem.batch)}",
        )
    )


def path_of(capability: tuple[int, int]) -> Path:
    """Return where the table of an architecture ships."""
    return FOLDER / f"sm_{capability[0]}{capability[1]}.json"


def measured(problem: Problem, pass_: Pass, capability: tuple[int, int]) -> TileConfig | None:
    """Return the tiles that were measured to be best for the problem's bucket, if it was measured."""
    return _shipped(path_of(capability)).get(key(problem, pass_))


def read_table(path: Path) -> dict[str, TileConfig]:
    """Read what `write_table` wrote; no file is an empty table.

    Args:
        path: A JSON file.

    Returns:
        Tiles by `key`.

    Raises:
        InputError: If an entry is not what this version writes.
    """
    if not path.exists():
        return {}
    entries: dict[str, dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    fields = set(TileConfig.__dataclass_fields__)
    read: dict[str, TileConfig] = {}
    for name, entry in entries.items():
        check(
            set(entry) == fields,
            f"tiles with the fields {', '.join(sorted(fields))} in {path.name}",
            f"{', '.join(sorted(entry))} at {name!r}",
            "measure the table again",
        )
        read[name] = TileConfig(**entry)  # type: ignore[arg-type]
    return read


def write_table(path: Path, entries: Entries) -> None:
    """Write tiles by `key`, sorted, complete or not at all; an existing table keeps what `entries` does not name."""
    merged = read_table(path) | dict(entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {name: asdict(merged[name]) for name in sorted(merged)}
    write_text_atomically(path, json.dumps(content, indent=1) + "\n")


@cache
def _shipped(path: Path) -> dict[str, TileConfig]:
    return read_table(path)


def _bucket(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()
