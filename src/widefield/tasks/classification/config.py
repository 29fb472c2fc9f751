"""A classification run as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from widefield._core.checks import check
from widefield._core.configs import from_plain, to_plain
from widefield._core.errors import InputError
from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import EmaConfig, OptimizerConfig, ScheduleConfig, TrainerConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network; the number of classes comes from the data."""

    name: str = "replknet_nano"
    """One of `widefield models`, or any other model of timm."""

    weights: str | None = None
    """A checkpoint or run folder to start from (a head of another size is made anew), or None for random weights."""

    kernel_sizes: tuple[int, ...] | None = None
    """Large-kernel size of each stage in place of the variant's own; odd."""

    drop_rate: float = 0.0
    """Dropout before the classifier."""

    drop_path_rate: float = 0.0
    """Drop-path probability of the last block, rising linearly from 0 at the first."""

    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides the outcome of a classification run."""

    recipe: str = "custom"
    """Name of the recipe that this came from."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def to_yaml(self) -> str:
        """Return the config as YAML, which `read_config` reads back to an equal value."""
        # Through from_plain, so that 10 and 10.0 are written alike: a resumed run compares the text.
        return yaml.safe_dump(to_plain(from_plain(RunConfig, to_plain(self))), sort_keys=False, width=120)


def read_config(path: Path) -> RunConfig:
    """Read a config file such as the ``config.yaml`` of a run.

    Args:
        path: The file.

    Returns:
        The config; fields that the file leaves out have their defaults.

    Raises:
        InputError: If it is missing or not YAML, names an unknown field, or has a value of another type.
    """
    check(path.is_file(), "a config file", f"no file at {path}", "check the path")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError("a config file in YAML", f"{path} ({reason})", "mend it or start from a recipe") from error
    return from_plain(RunConfig, values)
