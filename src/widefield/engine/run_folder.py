"""The folder of a run: what lies where, and writes that are either whole or absent."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield._core.files import PARTIAL, write_text_atomically
from widefield.engine.checkpointing import latest_state
from widefield.engine.run_lock import LOCK, lock_run

State = Mapping[str, Any]


def is_main_rank() -> bool:
    """Return whether this is the first (or only) process of the run, also before the process group exists."""
    return (dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))) == 0


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds one run.

    Args:
        path: The folder, which exists; `create` makes one.
    """

    path: Path

    @staticmethod
    def create(
        path: Path | str,
        resume: bool,
        needed_bytes: int | Callable[[State | None], int],
        config: str | None = None,
        *,
        compare: Callable[[State | None], None] | None = None,
        stack: ExitStack | None = None,
    ) -> RunFolder:
        """Make the folder of a run, or take up one that has a run in it.

        Only the main process touches the disk; other processes get the same value at once, and a refusal on the main
        process ends the run.

        Args:
            path: Where the run goes.
            resume: Take up the run that lies there.
            needed_bytes: Free space that the run needs, or what gives it for the state of the newest checkpoint.
            config: Text of the resolved config: written as `config.yaml`, or compared with it when resuming.
            compare: Called in place of that comparison with the state of the newest checkpoint, None if there is none;
                it raises what speaks against taking up the run. Where it does not, `config` becomes `config.yaml`.
            stack: Takes the release of a lock that keeps other processes from writing the folder; None for no lock.

        Returns:
            The folder.

        Raises:
            InputError: If the folder is taken, holds no run to resume or one of another config, is being written by
                another process, cannot be written, or lies on a disk with too little space. Nothing that was made is
                left behind, and nothing that was there has changed.
        """
        folder = RunFolder(Path(path).absolute())
        if not is_main_rank():
            return folder
        state: State | None = None
        if resume:
            folder._check_run()
            folder._lock(stack)
            if compare is None:
                folder._check_config(config)
            if compare is not None or callable(needed_bytes):
                state = latest_state(folder.checkpoints)
            if compare is not None:
                compare(state)
        else:
            folder._check_empty()
        folder._prepare(needed_bytes(state) if callable(needed_bytes) else needed_bytes, config, resume, stack)
        return folder

    @property
    def config(self) -> Path:
        """The resolved config, `config.yaml`."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One row per epoch, `metrics.csv`."""
        return self.path / "metrics.csv"

    @property
    def steps(self) -> Path:
        """Step, loss and learning rate every few updates, `steps.csv`."""
        return self.path / "steps.csv"

    @property
    def summary(self) -> Path:
        """The results of the run, `summary.json`."""
        return self.path / "summary.json"

    @property
    def model(self) -> Path:
        """The weights in train form, `model.safetensors`."""
        return self.path / "model.safetensors"

    @property
    def merged(self) -> Path:
        """The weights in inference form, `merged.safetensors`."""
        return self.path / "merged.safetensors"

    @property
    def checkpoints(self) -> Path:
        """Everything that is needed to resume, `checkpoints/`."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events, `tensorboard/`."""
        return self.path / "tensorboard"

    def figure(self, name: str) -> Path:
        """Return the path of the figure `name`, such as "curves.png"."""
        return self.path / name

    def write_text(self, name: str | Path, text: str) -> Path:
        """Write a text file of the folder atomically.

        Args:
            name: Path relative to the folder.
            text: Its content.

        Returns:
            The path of the file.
        """
        path = self.path / name
        write_text_atomically(path, text)
        return path

    def write_json(self, name: str | Path, value: Any) -> Path:
        """Write `value` as indented JSON, atomically.

        Args:
            name: Path relative to the folder.
            value: Anything that JSON can hold.

        Returns:
            The path of the file.
        """
        return self.write_text(name, json.dumps(value, indent=2) + "\n")

    def size_bytes(self, *names: str) -> int:
        """Return the size of all files of the folder, or of those files and folders in it, where they are there."""
        found = [path for name in names or (".",) for path in (self.path / name, *(self.path / name).rglob("*"))]
        return sum(path.stat().st_size for path in found if path.is_file())

    def _check_empty(self) -> None:
        check(
            not self.path.exists() or (self.path.is_dir() and not self._contents()),
            "a run folder that is new or empty",
            f"{self.path}, which has something in it",
            "choose another folder, or resume the run that lies there",
        )

    def _contents(self) -> list[str]:
        names = [entry.name for entry in self.path.iterdir()]
        return [name for name in names if name != LOCK and not name.endswith(PARTIAL)]

    def _lock(self, stack: ExitStack | None) -> None:
        if stack is None:
            return
        try:
            lock_run(self.path, stack)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> InputError:
        return InputError(
            "a folder that can be written",
            f"{self.path} ({error.strerror})",
            "choose another folder or change its permissions",
        )

    def _check_run(self) -> None:
        check(
            self.config.is_file() or self.checkpoints.is_dir(),
            "a folder with a run to resume",
            f"{self.path}, which has neither config.yaml nor checkpoints",
            "check the path, or start a new run there without resuming",
        )

    def _check_config(self, config: str | None) -> None:
        if config is None or not self.config.is_file():
            return
        kept = self.config.read_text(encoding="utf-8")
        changed = [
            line
            for line in difflib.unified_diff(kept.splitlines(), config.splitlines(), n=0, lineterm="")
            if line[:1] in "+-" and line[:3] not in ("+++", "---")
        ]
        check(
            kept == config,
            f"the config of the run in {self.path}",
            f"another one ({'; '.join(changed[:4]) or 'different line ends'})",
            "resume with the same settings, or start a new run in another folder",
        )

    def _prepare(self, needed_bytes: int, config: str | None, resume: bool, stack: ExitStack | None) -> None:
        made: Path | None = None
        ancestor = self.path
        while not ancestor.exists():
            made, ancestor = ancestor, ancestor.parent
        try:
            free = shutil.disk_usage(ancestor).free
            check(
                free >= needed_bytes,
                f"{needed_bytes / 1e6:.0f} MB free for the run",
                f"{free / 1e6:.0f} MB on the disk of {self.path}",
                "free space or choose a folder on another disk",
            )
            self.path.mkdir(parents=True, exist_ok=True)
            if not resume and stack is not None:
                # What another process makes there is not ours to remove.
                made, ours = None, made
                lock_run(self.path, stack)
                self._check_empty()
                made = ours
            tempfile.TemporaryFile(dir=self.path).close()
            if config is not None and not (self.config.is_file() and self.config.read_text("utf-8") == config):
                write_text_atomically(self.config, config)
        except (OSError, InputError) as error:
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
            if isinstance(error, InputError):
                raise
            raise self._refused(error) from error
