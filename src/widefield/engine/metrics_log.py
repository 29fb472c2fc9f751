"""The curves of a run: two CSV files always, TensorBoard and Weights & Biases if asked for."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import os
import re
import uuid
import zlib
from typing import TYPE_CHECKING, Any

from widefield._core.checks import check
from widefield._core.extras import require
from widefield._core.files import write_text_atomically
from widefield.engine.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)

_STEP_COLUMNS = ("step", "loss", "lr")
_NUMBER = r"-?(?:[\d.]+(?:e[+-]?\d+)?|nan|inf)"
_ROW = re.compile(rf"([1-9]\d{{0,17}}),{_NUMBER},{_NUMBER}(?:,\d*)?", re.ASCII)


def _metrics_text(history: Sequence[Mapping[str, float]]) -> str:
    columns = [name for name in dict.fromkeys(name for row in history for name in row) if name != "seconds"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*columns, "seconds"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: repr(value) for name, value in row.items()} for row in history)
    return text.getvalue()


def _check_new(folder: RunFolder) -> None:
    """Raise if there were checkpoints: the first one is written after the first row of `metrics.csv`."""
    try:
        rows = folder.metrics.read_bytes().count(b"\n") - 1 if folder.metrics.is_file() else 0
    except OSError:
        rows = 0
    check(
        rows < 2,
        f"the checkpoints of the run in {folder.path}",
        f"none, although metrics.csv holds {rows} epochs",
        f"restore {folder.checkpoints} from a copy, or start a new run in another folder",
    )


class MetricsLog:
    """Writes the curves of one run, on the main process alone.

    `metrics.csv` is replaced as a whole at every epoch, so it always holds one complete row per epoch of the history.
    `steps.csv` is appended to; its rows after `last_step` are cut first. What a checkpoint knows of it tells whether it
    was damaged since: rows that can still be read go on, the file as it was is set aside, and a warning says so.
    Numbers have full precision.

    Args:
        folder: The folder of the run.
        history: Rows of the epochs done, empty in a new run.
        last_step: Step of the checkpoint that the run goes on from, 0 in a new run.
        tensorboard: Write TensorBoard events.
        wandb: Log to Weights & Biases.
        counts_skipped: Give `steps.csv` a column for the steps that were skipped.
        kept: What `position` returned for the checkpoint that the run goes on from, if it is known.

    Raises:
        InputError: If the run would begin anew although the curves show that it has had checkpoints.
        MissingExtraError: If Weights & Biases is asked for and not installed.
    """

    def __init__(
        self,
        folder: RunFolder,
        history: Sequence[Mapping[str, float]],
        last_step: int,
        *,
        tensorboard: bool,
        wandb: bool,
        counts_skipped: bool = False,
        kept: Mapping[str, int] | None = None,
    ) -> None:
        self._folder = folder
        if not last_step:
            _check_new(folder)
        self._columns = (*_STEP_COLUMNS, "skipped") if counts_skipped else _STEP_COLUMNS
        self._wandb: Any = self._start_wandb() if wandb else None
        if history:
            write_text_atomically(folder.metrics, _metrics_text(history))
        else:
            folder.metrics.unlink(missing_ok=True)
        text = "\n".join([",".join(self._columns), *self._rows_until(last_step, kept)]) + "\n"
        write_text_atomically(folder.steps, text)
        self._bytes, self._crc32 = len(text), zlib.crc32(text.encode())
        self._steps = folder.steps.open("a", encoding="utf-8", newline="")
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder.tensorboard), purge_step=last_step + 1 if last_step else None)

    def log_step(self, step: int, loss: float, lr: float, skipped: int = 0) -> None:
        """Append a row to `steps.csv`.

        Args:
            step: Optimizer updates done.
            loss: Mean training loss since the last row.
            lr: Learning rate of the update.
            skipped: Steps skipped since the last row, for the column of them.
        """
        scalars = {"loss": loss, "lr": lr, "skipped": skipped}
        row = ",".join([str(step), *(repr(scalars[name]) for name in self._columns[1:])]) + "\n"
        self._steps.write(row)
        self._steps.flush()
        self._bytes, self._crc32 = self._bytes + len(row), zlib.crc32(row.encode(), self._crc32)
        self._send({f"train/{name}": scalars[name] for name in self._columns[1:]}, step)

    def log_epoch(self, history: Sequence[Mapping[str, float]]) -> None:
        """Write `metrics.csv`.

        Args:
            history: The rows of all epochs done; the last one is new.
        """
        write_text_atomically(self._folder.metrics, _metrics_text(history))
        row = history[-1]
        self._send({f"epoch/{name}": value for name, value in row.items() if name != "step"}, int(row["step"]))

    def flush(self) -> None:
        """Bring everything to the disk; called before a checkpoint, which must not be ahead of the curves."""
        self._steps.flush()
        os.fsync(self._steps.fileno())
        if self._events is not None:
            self._events.flush()

    def position(self) -> dict[str, int]:
        """Return length and checksum of `steps.csv` for a checkpoint."""
        return {"bytes": self._bytes, "crc32": self._crc32}

    def close(self) -> None:
        """Close files and connections."""
        self._steps.close()
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _send(self, scalars: Mapping[str, float], step: int) -> None:
        if self._events is not None:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(scalars), step=step)

    def _rows_until(self, last_step: int, kept: Mapping[str, int] | None) -> list[str]:
        if not last_step:
            return []
        path = self._folder.steps
        content = path.read_bytes() if path.is_file() else b""
        # Rows after the checkpoint were written by a process that was killed, the last of them perhaps by half.
        known = content if kept is None else content[: kept["bytes"]]
        rows, odd = self._rows(known.rpartition(b"\n")[0].decode(errors="replace").split("\n")[1:], last_step)
        if kept is not None and (len(known), zlib.crc32(known)) != (kept["bytes"], kept["crc32"]):
            # The damage may have moved what followed it.
            rows, odd = self._rows(content.decode(errors="replace").split("\n"), last_step)
        elif not odd:
            return rows
        aside = self._set_aside()
        _log.warning(
            "%s is damaged or gone: the %d of its rows up to step %d that can be read are kept%s%s. The weights are "
            "not touched by that.",
            path,
            len(rows),
            last_step,
            f", {odd} lines are left out" if odd else "",
            f", and the file as it was lies in {aside.name}" if aside is not None else "",
        )
        return rows

    def _rows(self, lines: Sequence[str], last_step: int) -> tuple[list[str], int]:
        """Return the rows up to a step, and how many lines are none."""
        width = len(self._columns)
        rows: list[str] = []
        odd = newest = 0
        for line in lines:
            if not line or line in (",".join(_STEP_COLUMNS), ",".join((*_STEP_COLUMNS, "skipped"))):
                continue
            match = _ROW.fullmatch(line)
            if match is None or int(match[1]) <= newest:
                odd += 1
            elif int(match[1]) <= last_step:
                newest = int(match[1])
                # An earlier process may have counted skipped steps where this one does not, or the other way.
                rows.append(",".join((line.split(",") + [""] * width)[:width]))
        return rows, odd

    def _set_aside(self) -> Path | None:
        path = self._folder.steps
        if not os.path.lexists(path):
            return None
        names = (path.with_name(f"steps.damaged{number or ''}.csv") for number in itertools.count())
        aside = next(name for name in names if not os.path.lexists(name))
        os.rename(path, aside)
        return aside

    def _start_wandb(self) -> Any:
        wandb = require("wandb", "wandb", "logging to Weights & Biases")
        note = self._folder.path / "wandb_id.txt"
        if not note.is_file():
            write_text_atomically(note, uuid.uuid4().hex)
        return wandb.init(
            project="widefield",
            name=self._folder.path.name,
            dir=str(self._folder.path),
            id=note.read_text(encoding="utf-8"),
            resume="allow",
        )
