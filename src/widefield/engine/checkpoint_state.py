"""What the JSON state of a checkpoint must hold: a file that is valid JSON may still be no checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from widefield._core.checks import check
from widefield._core.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

_Kind = Callable[[Any], bool]

_FIX = "resume from an earlier checkpoint, or start a new run in another folder"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value) and value >= 0


def _optional(kind: _Kind) -> _Kind:
    return lambda value: value is None or kind(value)


def _is_row(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values())) and {"epoch", "step"} <= value.keys()


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_row, value)) and _counts_up([row["epoch"] for row in value])


def _counts_up(epochs: list[Any]) -> bool:
    return epochs == list(range(1, len(epochs) + 1))


def _is_losses(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("interval"), list)
        and all(map(_is_number, value["interval"]))
        and _is_number(value.get("epoch_sum"))
        and _is_count(value.get("epoch_batches"))
    )


def _is_optimizer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("groups"), list)
        and all(_is_group(group) for group in value["groups"])
        and isinstance(value.get("state"), dict)
        and all(isinstance(packed, dict) for packed in value["state"].values())
    )


def _is_group(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("params"), list)
        and all(isinstance(name, str) for name in value["params"])
        and isinstance(value.get("options"), dict)
    )


def _are_extensions(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(kept, dict) and isinstance(kept.get("is_required"), bool) and "state" in kept
        for kept in value.values()
    )


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


_REQUIRED: dict[str, _Kind] = {
    "ranks": _is_count,
    "epoch": _is_count,
    "batch": _is_count,
    "step": _is_count,
    "lr": _is_number,
    "history": _is_history,
    "best_epoch": _optional(_is_count),
    "best_step": _optional(_is_count),
    "seconds": _is_time,
    "epoch_seconds": _is_time,
    "losses": _is_losses,
    "optimizer": _is_optimizer,
    "scaler": _optional(lambda value: isinstance(value, dict)),
}
_ADDED_LATER: dict[str, _Kind] = {
    "best_crc32": _optional(_is_count),
    "skipped": _are_counts,
    "extensions": _are_extensions,
    "steps_csv": lambda value: _are_counts(value) and {"bytes", "crc32"} <= value.keys(),
}


def check_state(state: Any, file: Path) -> None:
    """Raise unless `state` is what a run of this format keeps; values of another format are left to its reader.

    Args:
        state: The state of a checkpoint.
        file: Where it was read, for the message.

    Raises:
        InputError: If something is missing or of a wrong type, or parts of it contradict one another.
    """
    check(isinstance(state, dict), "the state of a checkpoint, a JSON object", f"another value in {file}", _FIX)
    if state.get("format") != 1:
        return
    wrong = [name for name, kind in _REQUIRED.items() if name not in state or not kind(state[name])]
    wrong += [name for name, kind in _ADDED_LATER.items() if name in state and not kind(state[name])]
    check(not wrong, "a whole checkpoint", f"one without a usable {' and '.join(map(repr, wrong))} in {file}", _FIX)
    epochs, best = len(state["history"]), state["best_epoch"]
    agrees = state["epoch"] == epochs and (state["best_step"] is None) == (best is None)
    if agrees and best is not None:
        agrees = 1 <= best <= epochs and state["history"][best - 1]["step"] == state["best_step"]
    check(
        agrees,
        "a checkpoint whose parts agree",
        f"one of {state['epoch']} epochs with {epochs} rows, the best of epoch {best} and step {state['best_step']}, "
        f"in {file}",
        _FIX,
    )


def check_position(step: int, epoch: int, batch: int, length: int, accumulate_steps: int) -> None:
    """Raise unless a run stands after `step` updates when it has done so many epochs and batches.

    Args:
        step: Optimizer updates done.
        epoch: Epochs done.
        batch: Batches of the current epoch done.
        length: Batches of an epoch.
        accumulate_steps: Batches of an update; the last one of an epoch may have fewer.

    Raises:
        InputError: If it does not.
    """
    per_epoch = math.ceil(length / accumulate_steps)
    check(
        batch <= length and step == epoch * per_epoch + math.ceil(batch / accumulate_steps),
        f"a checkpoint of a run with {per_epoch} steps of {length} batches an epoch",
        f"step {step} after {epoch} epochs and {batch} batches",
        "resume with the data, batch size and accumulation of the first run",
    )


@contextmanager
def understood(checkpoint: Path) -> Iterator[None]:
    """Turn what the parts of a run raise at values that are not theirs into one sentence.

    Raises:
        InputError: If the block raises an error of a key, a type, a value or a shape.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            "a checkpoint of this run", f"values in {checkpoint} that cannot be taken ({reason})", _FIX
        ) from error
