"""Checkpoints: complete or absent, checked when read, the newest few and the best weights kept."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from widefield._core.checks import check
from widefield._core.errors import InputError, RunError
from widefield._core.files import PARTIAL, sync_to_disk, write_atomically
from widefield.engine.optimizer_state import flatten_optimizer_state as flatten_optimizer_state
from widefield.engine.optimizer_state import restore_optimizer_state as restore_optimizer_state
from widefield.engine.random_state import restore_rng_state as restore_rng_state
from widefield.engine.random_state import rng_state as rng_state

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

logger = logging.getLogger(__name__)

_TENSORS = "tensors.safetensors"
_STATE = "state.json"
_STEP = re.compile(r"step_(\d{8,})")


def _step_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(int(match[1]), entry) for entry in folder.iterdir() if (match := _STEP.fullmatch(entry.name))]
    return [entry for _, entry in sorted(found)]


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


@contextmanager
def disk_errors(path: Path, checkpoints: Path) -> Iterator[None]:
    """Turn a failed write into a `RunError` that names `path` and the checkpoint that is kept.

    Args:
        path: What is being written.
        checkpoints: The folder of checkpoints of the run.

    Raises:
        RunError: If the block raises `OSError` or safetensors' own error.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        full = (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "space" in reason
        kept = _step_folders(checkpoints)
        rest = f"the last complete checkpoint, {kept[-1]}, is kept" if kept else "there is no checkpoint yet"
        mend = "free space on the disk" if full else "mend the disk or its limits"
        raise RunError(f"Writing {path} failed ({reason}): {mend} and resume the run; {rest}.") from error


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        pointer = plain.untyped_storage().data_ptr()
        # safetensors refuses two names for one piece of memory.
        kept[name] = plain.clone() if pointer and pointer in storages else plain
        storages.add(pointer)
    return kept


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically; of names for one and the same tensor only the first is stored.

    Args:
        path: The file.
        tensors: Tensors of any device and memory format.
        metadata: Text for the header of the file.

    Raises:
        OSError: If the disk refuses.
    """
    from safetensors.torch import save_file

    first: dict[int, str] = {}
    unique = {name: tensor for name, tensor in tensors.items() if first.setdefault(id(tensor), name) == name}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: save_file(_storable(unique), partial, metadata))


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write a checkpoint into `folder`, then remove those that are no longer kept.

    It is written into a hidden sibling, flushed to the disk and renamed, so that a kill at any moment leaves complete
    checkpoints only.

    Args:
        folder: The folder of checkpoints of a run, `RunFolder.checkpoints`.
        step: Optimizer updates done.
        tensors: Tensors of any device and memory format.
        state: Everything else, as JSON; weights in `folder/best` stay while a kept checkpoint has their step as
            `best_step`.
        keep: Newest checkpoints that stay.

    Returns:
        The checkpoint, `folder/step_00001234`.

    Raises:
        RunError: If it cannot be written; earlier checkpoints are as they were.
    """
    from safetensors.torch import save_file

    path = folder / f"step_{step:08d}"
    partial = folder / f".{path.name}{PARTIAL}"
    with disk_errors(path, folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            save_file(_storable(tensors), partial / _TENSORS)
            checksums = {_TENSORS: _crc32(partial / _TENSORS), _STATE: zlib.crc32(json.dumps(state).encode())}
            (partial / _STATE).write_text(json.dumps({"checksums": checksums, "state": state}), encoding="utf-8")
            for written in (partial / _TENSORS, partial / _STATE, partial):
                sync_to_disk(written)
            if path.exists():
                replaced = folder / f".{path.name}.replaced{PARTIAL}"
                os.rename(path, replaced)
                os.rename(partial, path)
                shutil.rmtree(replaced)
            else:
                os.rename(partial, path)
        except Exception:
            # Whatever went wrong is raised again: only what was half written goes.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_to_disk(folder)
    _prune(folder, keep)
    return path


def best_weights_path(folder: Path, step: int) -> Path:
    """Return where the best weights lie in the checkpoints `folder` if they were reached at `step`."""
    return folder / "best" / f"step_{step:08d}.safetensors"


def _prune(folder: Path, keep: int) -> None:
    present = _step_folders(folder)
    for old in present[:-keep]:
        # Renamed first: a kill while its files go must not leave half a checkpoint under a real name.
        doomed = folder / f".{old.name}.old{PARTIAL}"
        os.rename(old, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    names = {best_weights_path(folder, step).name for step in map(_best_step, present[-keep:]) if step is not None}
    if (folder / "best").is_dir():
        for weights in (folder / "best").iterdir():
            if weights.name not in names:
                weights.unlink()


def _best_step(path: Path) -> int | None:
    try:
        return _read_state(path).get("best_step")
    except InputError:
        return None


def _read_state(path: Path) -> dict[str, Any]:
    file = path / _STATE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        state = content["state"]
        intact = content["checksums"][_STATE] == zlib.crc32(json.dumps(state).encode())
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        intact, state = False, {}
    check(intact, "a complete checkpoint", f"a truncated or damaged file, {file}", "resume from an earlier checkpoint")
    return state


def _check_tensors(path: Path) -> None:
    file = path / _TENSORS
    stored = json.loads((path / _STATE).read_text(encoding="utf-8"))["checksums"].get(_TENSORS)
    check(
        file.is_file() and _crc32(file) == stored,
        "a complete checkpoint",
        f"a truncated or damaged file, {file}",
        "resume from an earlier checkpoint",
    )


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint that `save_checkpoint` wrote, onto the CPU.

    Args:
        path: The folder of the checkpoint.

    Returns:
        Its tensors and its JSON state.

    Raises:
        InputError: If a file of it is missing, truncated or damaged.
    """
    from safetensors.torch import load_file

    state = _read_state(path)
    _check_tensors(path)
    return load_file(path / _TENSORS), state


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that is intact, and clear what a kill left behind.

    A damaged one is passed over with a warning and set aside under the name `damaged_step_...`.

    Args:
        folder: The folder of checkpoints of a run.

    Returns:
        Its path, or None if there is no checkpoint at all.

    Raises:
        InputError: If there are checkpoints and none of them is intact.
    """
    if not folder.is_dir():
        return None
    _clear_leftovers(folder)
    damaged: list[tuple[Path, InputError]] = []
    for path in reversed(_step_folders(folder)):
        try:
            _read_state(path)
            _check_tensors(path)
        except InputError as error:
            damaged.append((path, error))
            continue
        for other, error in damaged:
            aside = folder / f"damaged_{other.name}"
            logger.warning("%s Falling back to %s; the damaged one is set aside as %s.", error, path, aside)
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(other, aside)
        return path
    check(
        not damaged,
        f"an intact checkpoint in {folder}",
        f"only damaged ones (the newest is {damaged[0][0].name if damaged else ''})",
        "restore one from a copy, or start a new run in another folder",
    )
    return None


def _clear_leftovers(folder: Path) -> None:
    for place in (folder, folder / "best"):
        for entry in place.iterdir() if place.is_dir() else ():
            if not (entry.name.startswith(".") and entry.name.endswith(PARTIAL)):
                continue
            original = folder / entry.name.removeprefix(".").removesuffix(f".replaced{PARTIAL}")
            if entry.name.endswith(f".replaced{PARTIAL}") and not original.exists():
                os.rename(entry, original)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
