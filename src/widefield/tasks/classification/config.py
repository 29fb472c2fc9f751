"""A classification run as one frozen value."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from widefield._core.checks import check, check_range
from widefield._core.configs import from_plain, to_plain
from widefield._core.errors import InputError
from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import EmaConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from widefield.sparsity.config import SparsityConfig
from widefield.tasks.distillation.config import DistillationConfig

_LARGEST_NUMBER = 1_000_000
_LONGEST_LIST, _DEEPEST_LIST = 1_000, 2


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

    head_init_scale: float = 1.0
    """Factor on the first weights of a new classifier; fine-tuning recipes start it close to zero."""

    options: tuple[str, ...] = ()
    """Other arguments of the model, each as NAME=VALUE: small_kernel_size=3 shortcut=false. Where a model has kernel
    sizes for each block: kernel_sizes=[3,13,13-3-3x9,[13,0,13]]."""

    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        for name in ("drop_rate", "drop_path_rate"):
            check_range(f"model.{name}", getattr(self, name), 0, 1, "give a probability, such as 0.1")
        least = min(_sizes(self.kernel_sizes), default=0)
        check(least >= 0, "model.kernel_sizes that are odd", f"{least}", "use 3 or more")
        check(
            0 < self.head_init_scale < math.inf,
            "a positive model.head_init_scale",
            f"{self.head_init_scale:g}",
            "use 1 to leave the classifier's first weights as they are",
        )

    def arguments(self) -> dict[str, Any]:
        """Return what the model is made with, besides the number of its classes.

        Raises:
            InputError: If one of `options` is not NAME=VALUE, or has a field of its own.
        """
        arguments: dict[str, Any] = {"drop_rate": self.drop_rate}
        if self.drop_path_rate:
            arguments["drop_path_rate"] = self.drop_path_rate
        if self.kernel_sizes is not None:
            arguments["kernel_sizes"] = self.kernel_sizes
        if self.head_init_scale != 1:
            arguments["head_init_scale"] = self.head_init_scale
        own = {"drop_rate", "drop_path_rate", "kernel_sizes", "head_init_scale", "num_classes"}
        for option in self.options:
            name, equals, text = option.partition("=")
            check(
                bool(equals) and name.isidentifier(),
                "model.options as NAME=VALUE",
                repr(option),
                "write for instance --model.options shortcut=false small_kernel_size=3",
            )
            value = _plain_value(option, text)
            check(
                not _has_absurd_number(value),
                f"model.options with numbers of at most {_LARGEST_NUMBER:,}",
                repr(option[:200]),
                "lower it",
            )
            if name == "kernel_sizes" and _is_of_blocks(value):
                check(
                    self.kernel_sizes is None,
                    "kernel sizes for stages or for blocks",
                    f"both, with {option!r}",
                    "leave out --model.kernel-sizes",
                )
                arguments[name] = tuple(_sizes_of_stage(option, sizes) for sizes in value)
                continue
            check(
                name not in own,
                "model.options without fields of their own",
                repr(option),
                f"use --model.{name.replace('_', '-')}"
                if name != "num_classes"
                else "leave it out: the number of classes comes from the data",
            )
            arguments[name] = value
            # timm.create_model() leaves out arguments that are None, and the model would have its own default.
            check(
                value is not None,
                "model.options with a value",
                repr(option),
                "leave it out for the model's own default, or give a value",
            )
        return arguments


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
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    sparsity: SparsityConfig | None = None
    """Train with a share of the weights at zero; None for a dense network."""

    def __post_init__(self) -> None:
        largest, side = max(_sizes(self.model.kernel_sizes), default=0), self.data.image_size
        check(
            largest < 2 * side,
            f"kernels of at most {2 * side - 1} for images of {side} px, beyond which no tap meets a pixel",
            f"model.kernel_sizes with {largest}",
            "lower them, or raise data.image_size",
        )

    @property
    def update_batch(self) -> int:
        """Images behind one optimizer update, over all processes and accumulated batches."""
        return self.data.batch_size * self.trainer.accumulate_steps

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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise InputError("a config file in YAML", f"{path} ({reason})", "mend it or start from a recipe") from error
    return from_plain(RunConfig, values)


def _is_of_blocks(value: Any) -> bool:
    """Whether kernel sizes are more than one number for each stage, which is a field of its own."""
    return isinstance(value, list) and any(isinstance(sizes, list | str) for sizes in cast("list[Any]", value))


def _sizes_of_stage(option: str, sizes: Any) -> Any:
    """Read the kernel sizes of a stage: one for all its blocks, one for each, or a pattern and how often it comes."""
    if not isinstance(sizes, str):
        return sizes
    pattern = re.fullmatch(r"(\d+(?:-\d+)*) ?x ?(\d{1,4})", sizes)
    if pattern is None:
        raise InputError(
            "kernel sizes of a stage as 13, [13, 3, 3] or 13-3-3x9",
            f"{sizes!r} in {option!r}",
            "write one of these for each stage",
        )
    return tuple(map(int, pattern[1].split("-"))) * int(pattern[2])


def _has_absurd_number(value: object, depth: int = 0) -> bool:
    """Whether a number is infinite, NaN, or larger than any size of a network, also within lists of some length."""
    if isinstance(value, list):
        items = cast("list[object]", value)
        is_endless = depth > _DEEPEST_LIST or len(items) > _LONGEST_LIST
        return is_endless or any(_has_absurd_number(item, depth + 1) for item in items)
    return isinstance(value, int | float) and not abs(value) <= _LARGEST_NUMBER


def _sizes(kernel_sizes: Sequence[int | Sequence[int]] | None) -> list[int]:
    """All kernel sizes, whether they are for stages or for single blocks."""
    return [size for stage in kernel_sizes or () for size in ((stage,) if isinstance(stage, int) else stage)]


def _plain_value(option: str, text: str) -> Any:
    """Read the value of an option as YAML does: numbers, true and false, null, lists."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            "model.options with values as in YAML", repr(option), "write numbers, words, true, false or [1, 2]"
        ) from error
