"""Training on the terminal: a bar, a line for each epoch."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from widefield.cli.terminal import description


class RichReporter:
    """A `widefield.engine.Reporter` that draws on a console.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            description(),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._epochs = 0

    def run_started(self, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        """Show the bar."""
        self._epochs = epochs
        if first_step > 1:
            self._console.print(f"taking up the run at step {first_step:,} of {epochs * steps_per_epoch:,}")
        total = epochs * steps_per_epoch
        self._task = self._progress.add_task("training", total=total, completed=first_step - 1, loss="...")
        self._progress.start()

    def step_done(self, epoch: int, step: int, loss: float, lr: float) -> None:
        """Move the bar."""
        description = f"epoch {epoch}/{self._epochs}"
        self._progress.update(self._task, completed=step, description=description, loss=f"{loss:.3f}")

    def epoch_done(self, epoch: int, row: Mapping[str, float], is_best: bool) -> None:
        """Print the epoch's scores."""
        width = len(str(self._epochs))
        self._progress.update(self._task, completed=int(row["step"]))
        scores = f"val loss {row['val_loss']:.3f}  top-1 {row['top1']:6.2f} %  " if "top1" in row else ""
        told = f"epoch {epoch:>{width}}/{self._epochs}  loss {row['train_loss']:.3f}  {scores}{row['seconds']:5.1f} s"
        best = ("  best", "green") if is_best else ""
        self._progress.console.print(Text.assemble(told, best), soft_wrap=True)

    def run_done(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def stop(self) -> None:
        """Take the bar away, also when the run was broken off."""
        self._progress.stop()
