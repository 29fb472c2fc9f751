"""Checkpoints: complete or absent, checked when read, the newest few and the best weights kept."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import re
import shutil
import zlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from widefield._core.checks import check
from widefield._core.errors import InputError, RunError
from widefield._core.files import PARTIAL, sync_to_disk, write_atomically
from widefield.engine.checkpoint_state import check_state
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
_BEST = re.compile(r"step_(\d{8,})\.safetensors")


def _step_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Files, too: whoever has put one there is told of it.
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
        mend = "free space on the disk" if full else "mend the disk or its limits"
        if isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)):
            mend = f"move {error.filename2 or error.filename or path} away"
        rest = what_is_kept(checkpoints)
        raise RunError(f"Writing {path} failed ({reason}): {mend} and resume the run; {rest}.") from error


def has_checkpoint(folder: Path) -> bool:
    """Return whether there is a checkpoint in `folder`."""
    try:
        return bool(_step_folders(folder))
    except OSError:
        return False


def what_is_kept(folder: Path) -> str:
    """Return what a person whose run has failed wants to know: the newest checkpoint in `folder`, or that none is."""
    newest = _step_folders(folder)[-1] if has_checkpoint(folder) else None
    return "there is no checkpoint yet" if newest is None else f"the last complete checkpoint, {newest}, is kept"


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
            _remove(partial)
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
                _remove(replaced)
            else:
                os.rename(partial, path)
        except Exception:
            # Whatever went wrong is raised again: only what was half written goes.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_to_disk(folder)
        _prune(folder, keep)
    return path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def best_weights_path(folder: Path, step: int) -> Path:
    """Return where the best weights lie in the checkpoints `folder` if they were reached at `step`."""
    return folder / "best" / f"step_{step:08d}.safetensors"


def write_best_weights(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> int:
    """Write the best weights into the checkpoints `folder`.

    Returns:
        The checksum by which `read_best_weights` knows them, to be kept in the checkpoints.

    Raises:
        RunError: If the disk refuses.
    """
    path = best_weights_path(folder, step)
    with disk_errors(path, folder):
        write_weights(path, tensors)
        return _crc32(path)


def read_best_weights(folder: Path, step: int, checksum: int | None) -> dict[str, Tensor]:
    """Read the best weights in the checkpoints `folder`, onto the CPU.

    Args:
        folder: The folder of checkpoints of a run.
        step: When they were reached.
        checksum: What `write_best_weights` returned; None in a run of an earlier version, which kept none.

    Raises:
        InputError: If they are missing, truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = best_weights_path(folder, step)
    weights: dict[str, Tensor] | None = None
    with suppress(OSError, SafetensorError):
        if path.is_file() and checksum in (None, _crc32(path)):
            weights = load_file(path)
    got = f"a truncated or damaged file {path}" if os.path.lexists(path) else f"no file {path}"
    fix = "restore it from a copy, or run again"
    if weights is None:
        raise InputError("the best weights of the run", got, fix)
    return weights


def _prune(folder: Path, keep: int) -> None:
    present = _step_folders(folder)
    for old in present[:-keep]:
        # Renamed first: a kill while its files go must not leave half a checkpoint under a real name.
        doomed = folder / f".{old.name}.old{PARTIAL}"
        _remove(doomed)
        os.rename(old, doomed)
        _remove(doomed)
    names = {best_weights_path(folder, step).name for step in map(_best_step, present[-keep:]) if step is not None}
    if (folder / "best").is_dir():
        for weights in (folder / "best").iterdir():
            if _BEST.fullmatch(weights.name) and weights.name not in names:
                _remove(weights)


def _best_step(path: Path) -> int | None:
    try:
        return _read_state(path).get("best_step")
    except InputError:
        return None


def _read_content(path: Path) -> dict[str, Any]:
    """Return what `state.json` of the checkpoint `path` holds, its own checksum verified."""
    file = path / _STATE
    content: dict[str, Any] = {}
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        # A pipe in its place would be waited for.
        read: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if read["checksums"][_STATE] == zlib.crc32(json.dumps(read["state"]).encode()):
            content = read
    check(
        bool(content),
        "a complete checkpoint",
        f"a truncated or damaged file, {file}",
        "resume from an earlier checkpoint",
    )
    check_state(content["state"], file)
    return content


def _read_state(path: Path) -> dict[str, Any]:
    return _read_content(path)["state"]


def _check_tensors(path: Path) -> None:
    _check_file(path / _TENSORS, _read_content(path)["checksums"].get(_TENSORS))


def _check_file(file: Path, checksum: Any) -> None:
    intact = False
    with suppress(OSError):
        intact = file.is_file() and _crc32(file) == checksum
    check(intact, "a complete checkpoint", f"a truncated or damaged file, {file}", "resume from an earlier checkpoint")


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint that `save_checkpoint` wrote, onto the CPU.

    Args:
        path: The folder of the checkpoint.

    Returns:
        Its tensors and its JSON state.

    Raises:
        InputError: If a file of it is missing, truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    content = _read_content(path)
    _check_file(path / _TENSORS, content["checksums"].get(_TENSORS))
    try:
        return load_file(path / _TENSORS), content["state"]
    except (SafetensorError, OSError) as error:
        raise InputError(
            "a complete checkpoint",
            f"a file that is no safetensors file, {path / _TENSORS} ({error})",
            "resume from an earlier checkpoint",
        ) from error


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
    try:
        # Also a link that leads nowhere: only where there is nothing was nothing.
        check(
            folder.is_dir() or not (folder.exists() or folder.is_symlink()),
            "a folder of checkpoints",
            f"{folder}, which is none",
            "restore it from a copy, or start a new run in another folder",
        )
        return _latest_intact(folder) if folder.is_dir() else None
    except OSError as error:
        raise InputError(
            "a folder of checkpoints that can be read and written",
            f"{error.filename or folder} ({error.strerror or error})",
            "mend its permissions or the disk",
        ) from error


def _latest_intact(folder: Path) -> Path | None:
    _clear_leftovers(folder)
    damaged: list[tuple[Path, InputError]] = []
    for path in reversed(_step_folders(folder)):
        try:
            _check_tensors(path)
        except InputError as error:
            damaged.append((path, error))
            continue
        for other, error in damaged:
            aside = _free_name(folder / f"damaged_{other.name}")
            logger.warning("%s Falling back to %s; the damaged one is set aside as %s.", error, path, aside)
            os.rename(other, aside)
        return path
    check(
        not damaged,
        f"an intact checkpoint in {folder}",
        f"only damaged ones (the newest is {damaged[0][0].name if damaged else ''})",
        "restore one from a copy, or start a new run in another folder",
    )
    return None


def latest_state(folder: Path) -> dict[str, Any] | None:
    """Return the JSON state of the checkpoint that `latest_checkpoint` would return, or None if there is none."""
    path = latest_checkpoint(folder)
    return None if path is None else _read_state(path)


def _free_name(path: Path) -> Path:
    names = (path if number == 1 else path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _clear_leftovers(folder: Path) -> None:
    for place in (folder, folder / "best"):
        for entry in place.iterdir() if place.is_dir() else ():
            if not (entry.name.startswith(".") and entry.name.endswith(PARTIAL)):
                continue
            original = folder / entry.name.removeprefix(".").removesuffix(f".replaced{PARTIAL}")
            if entry.name.endswith(f".replaced{PARTIAL}") and not original.exists():
                os.rename(entry, original)
            else:
                _remove(entry)
