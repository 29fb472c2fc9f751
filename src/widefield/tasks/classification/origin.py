"""What a run was begun with, kept in its checkpoints: settings, images and machine; a run goes on with the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from widefield.__about__ import __version__
from widefield._core.checks import check
from widefield._core.configs import from_plain, to_plain
from widefield._core.errors import InputError
from widefield.data import DataIdentity, Splits, identify, read_images
from widefield.engine import RunFolder
from widefield.tasks.classification.config import RunConfig, read_config

logger = logging.getLogger(__name__)

CHANGEABLE = (
    "data.root",
    "data.workers",
    "data.on_error",
    "trainer.device",
    "trainer.checkpoint_every_steps",
    "trainer.keep_checkpoints",
    "trainer.log_every_steps",
    "trainer.tensorboard",
    "trainer.wandb",
    "trainer.skip_nonfinite",
    "trainer.monitor_activations",
    "trainer.monitored_modules",
    "trainer.activation_limit",
)
"""Settings that may change when a run is taken up, since no weight depends on them, as long as no step or image is left
out; the root may, since the images there have to be the same. `trainer.epochs` may rise beside them."""

_MOST = 4


@dataclass(frozen=True, kw_only=True)
class RunOrigin:
    """What a run is made of."""

    config: RunConfig
    splits: Splits
    images: DataIdentity
    environment: Mapping[str, Any]

    @staticmethod
    def of(config: RunConfig, splits: Splits, device: torch.device, world_size: int) -> RunOrigin:
        """Return the origin of a run that starts here and now."""
        return RunOrigin(
            config=config,
            splits=splits,
            images=identify(splits),
            environment={
                "processes": world_size,
                "device": device.type,
                "threads": torch.get_num_threads(),
                "CPU instructions": torch.backends.cpu.get_cpu_capability(),
                "torch": str(torch.__version__),
                "widefield": __version__,
            },
        )

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, as JSON."""
        return {
            "config": to_plain(self.config),
            "data": to_plain(self.images),
            "environment": dict(self.environment),
        }

    def check_same(self, folder: RunFolder, images: Path, state: Mapping[str, Any] | None) -> None:
        """Compare with what lies in the folder of a run; warn where the outcome is no longer the same bit for bit.

        Args:
            folder: The folder of the run.
            images: Where its list of images lies, if it is there.
            state: Of its newest checkpoint; None if there is none, where `config.yaml` alone is compared.

        Raises:
            InputError: If settings that decide the outcome have changed, or the images; all that has is named.
        """
        known: Mapping[str, Any] = {} if state is None else state.get("origin", {})
        if "config" in known:
            self._check_config(folder, from_plain(RunConfig, known["config"]))
        elif folder.config.is_file():
            self._check_config(folder, read_config(folder.config))
        if "data" in known:
            self._check_images(folder, images, from_plain(DataIdentity, known["data"]))
        if state is not None and not known:
            logger.warning(
                "the checkpoints in %s are of an earlier version and do not say which images and settings they come "
                "from: make sure that these have not changed",
                folder.path,
            )
        self._compare_environment(folder, known.get("environment", {}))

    def _check_config(self, folder: RunFolder, known: RunConfig) -> None:
        changed = {path: values for path, values in changes(known, self.config).items() if path not in CHANGEABLE}
        before, now = changed.get("trainer.epochs", (0, 0))
        if before < now:
            del changed["trainer.epochs"]
            logger.warning(
                "the run in %s goes on to %d epochs in place of %d: from here on, learning rate and masks follow the "
                "schedules of the longer run, which is not what a run begun with that length would have done",
                folder.path,
                now,
                before,
            )
        told = [f"{path} {now} in place of {before}" for path, (before, now) in changed.items()]
        check(
            not changed,
            f"the settings that the run in {folder.path} was begun with",
            "; ".join(told[:_MOST]) + (f"; and {len(told) - _MOST} more" if len(told) > _MOST else ""),
            f"take these back, or start a new run in another folder (only {', '.join(CHANGEABLE)} and a larger "
            "trainer.epochs can change in a run)",
        )

    def _check_images(self, folder: RunFolder, images: Path, known: DataIdentity) -> None:
        if self.images == known:
            return
        differences = self.images.differences(known, read_images(images), self.splits)
        raise InputError(
            f"the images that the run in {folder.path} was begun with",
            "; ".join(differences[:_MOST]),
            "restore them, or start a new run in another folder",
        )

    def _compare_environment(self, folder: RunFolder, known: Mapping[str, Any]) -> None:
        on_cpu = {"threads", "CPU instructions"}
        # The number of processes is compared by the engine, which cannot go on with another.
        odd = [
            f"{name} {now} in place of {known[name]}"
            for name, now in self.environment.items()
            if name in known
            and known[name] != now
            and name != "processes"
            and (name not in on_cpu or self.environment["device"] == "cpu")
        ]
        if odd:
            logger.warning(
                "the run in %s goes on with %s: its results may differ in the last digits from those of a run that "
                "was never stopped",
                folder.path,
                ", ".join(odd),
            )


def changes(known: RunConfig, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by their names with dots, each with the value before and now."""
    # Through from_plain, which makes 10 and 10.0 one.
    plain = [to_plain(from_plain(RunConfig, to_plain(value))) for value in (known, config)]
    return dict(_differing(plain[0], plain[1], ""))


def _differing(known: Any, now: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(known, dict) and isinstance(now, dict):
        for name, value in cast("dict[str, Any]", known).items():
            yield from _differing(value, now[name], f"{path}.{name}".lstrip("."))
    elif known != now:
        yield path, (known, now)
