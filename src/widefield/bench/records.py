"""Records of benchmarks: typed, checked when they are read, written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from widefield._core.checks import check, check_name
from widefield._core.configs import from_plain, missing_fields, to_plain
from widefield._core.errors import InputError
from widefield._core.files import write_text_atomically
from widefield.bench.entries import MapEntry, ModelEntry, Result, Shape
from widefield.bench.environment import Environment

SCHEMA = 1
"""Raised when a reader of older records would misread newer ones."""

Kind = Literal["operator", "kernel_sizes", "grid", "models", "calibration"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one benchmark measured, and where."""

    kind: Kind
    environment: Environment
    planned: int
    """Problems (or models) that were to be measured; fewer `entries` than that make a partial record."""
    maps: tuple[MapEntry, ...] = ()
    """Measured maps of depthwise convolutions."""
    models: tuple[ModelEntry, ...] = ()
    """Measured networks."""

    @property
    def problems(self) -> int:
        """Number of different problems that were measured."""
        return len({entry.problem for entry in self.maps}) or len(self.models)

    @property
    def is_complete(self) -> bool:
        """Whether all that was planned was measured."""
        return self.problems >= self.planned


def write(record: Record, path: Path) -> None:
    """Write a record as JSON, one line for each entry; a crash leaves the earlier file or none.

    Args:
        record: What to write.
        path: Where to; the folder exists.
    """
    head = {"schema": SCHEMA, "kind": record.kind, "planned": record.planned}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    lines.append(f'"environment": {json.dumps(to_plain(record.environment))}')
    for name in ("maps", "models"):
        entries = [json.dumps(_compact(entry)) for entry in getattr(record, name)]
        if entries:
            lines.append(f'"{name}": [\n  ' + ",\n  ".join(entries) + "\n ]")
    write_text_atomically(path, "{\n " + ",\n ".join(lines) + "\n}\n")


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        InputError: If the file is missing, no JSON, of another schema, or lacks or has other fields.
    """
    check(path.is_file(), "a benchmark record", f"no file at {path}", "check the path")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError("a benchmark record", f"{path}, which is not JSON", "write it anew") from error
    return validated(values, str(path))


def validated(values: object, source: str) -> Record:
    """Return the record that parsed JSON holds.

    Args:
        values: What `json.loads` gave.
        source: Where it came from, for messages.

    Raises:
        InputError: As `read`.
    """
    check(is_record(values), "a benchmark record", f"{source}, which says no schema and kind", "write it anew")
    fields = dict(cast("dict[str, Any]", values))
    schema = fields.pop("schema")
    fix = "update widefield" if isinstance(schema, int) and schema > SCHEMA else "write the record anew"
    check(schema == SCHEMA, f"a record of schema {SCHEMA}", f"schema {schema!r} in {source}", fix)
    absent = ", ".join(missing_fields(Record, fields))
    check(not absent, "a record with all its fields", f"{source} without {absent}", "write the record anew")
    try:
        entries = {
            name: tuple(_built(kind, value, source) for value in fields.pop(name, ()))
            for name, kind in (("maps", MapEntry), ("models", ModelEntry))
        }
        return dataclasses.replace(from_plain(Record, fields), **entries)
    except TypeError as error:
        missing = str(error).split(":", 1)[-1].strip()
        raise InputError(
            "a record with all its fields", f"{source} without {missing}", "write the record anew"
        ) from error


def is_record(values: object) -> bool:
    """Return whether parsed JSON is a record of this format, of any schema."""
    return isinstance(values, dict) and {"schema", "kind"} <= values.keys()


_NESTED: dict[type, dict[str, type]] = {
    MapEntry: {"problem": Shape, "results": Result},
    ModelEntry: {"result": Result},
    Shape: {},
    Result: {},
}


def _built(kind: type, values: Any, source: str) -> Any:
    """Build an entry; `from_plain` would take seconds for the thousands that a grid has."""
    check(isinstance(values, dict), "entries that are JSON objects", f"{values!r} in {source}", "write the record anew")
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kind.__dataclass_fields__:
            check_name(name, kind.__dataclass_fields__, f"field of an entry in {source}")
        inner = _NESTED[kind].get(name)
        if inner is not None:
            value = (
                [_built(inner, v, source) for v in value] if isinstance(value, list) else _built(inner, value, source)
            )
        elif name.endswith("_ms"):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            check(is_number, f"{name} to be a number", f"{value!r} in {source}", "write the record anew")
        fields[name] = tuple(value) if isinstance(value, list) else value
    return kind(**fields)


def _compact(value: Any) -> Any:
    """Return a dataclass as plain values, without fields that have their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _compact(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
    if isinstance(value, tuple):
        return [_compact(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
