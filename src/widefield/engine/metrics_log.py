"""The curves of a run: two CSV files always, TensorBoard and Weights & Biases if asked for."""

from __future__ import annotations

import csv
import io
import os
import uuid
from typing import TYPE_CHECKING, Any

from widefield._core.extras import require
from widefield._core.files import write_text_atomically
from widefield.engine.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STEP_COLUMNS = ("step", "loss", "lr")


def _metrics_text(history: Sequence[Mapping[str, float]]) -> str:
    columns = [name for name in dict.fromkeys(name for row in history for name in row) if name != "seconds"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*columns, "seconds"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: repr(value) for name, value in row.items()} for row in history)
    return text.getvalue()


class MetricsLog:
    """Writes the curves of one run, on the main process alone.

    `metrics.csv` is replaced as a whole at every epoch, so it always holds one complete row per epoch of the history.
    `steps.csv` is appended to; its rows after `last_step` are cut first. Numbers have full precision.

    Args:
        folder: The folder of the run.
        history: Rows of the epochs done, empty in a new run.
        last_step: Step of the checkpoint that the run goes on from, 0 in a new run.
        tensorboard: Write TensorBoard events.
        wandb: Log to Weights & Biases.
        counts_skipped: Give `steps.csv` a column for the steps that were skipped.

    Raises:
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
    ) -> None:
        self._folder = folder
        self._columns = (*_STEP_COLUMNS, "skipped") if counts_skipped else _STEP_COLUMNS
        self._wandb: Any = self._start_wandb() if wandb else None
        if history:
            write_text_atomically(folder.metrics, _metrics_text(history))
        else:
            folder.metrics.unlink(missing_ok=True)
        write_text_atomically(folder.steps, self._steps_until(last_step))
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
        self._steps.write(",".join([str(step), *(repr(scalars[name]) for name in self._columns[1:])]) + "\n")
        self._steps.flush()
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

    def _steps_until(self, last_step: int) -> str:
        kept = [",".join(self._columns)]
        if last_step and self._folder.steps.is_file():
            lines = self._folder.steps.read_text(encoding="utf-8").split("\n")[1:-1]
            width = len(self._columns)
            # An earlier process may have counted skipped steps where this one does not, or the other way.
            rows = [(line.split(",") + [""] * width)[:width] for line in lines]
            kept += [",".join(row) for row in rows if int(row[0]) <= last_step]
        return "\n".join(kept) + "\n"

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
