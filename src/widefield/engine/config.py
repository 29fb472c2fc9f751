"""What a training run is made of, as frozen values: optimizer, schedule, weight averaging, trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from widefield._core.checks import check, check_range, check_seed

_MOST = 1_000_000
"""Epochs, or batches of one update, beyond which a number can only be a slip."""


def _check_at_least(name: str, value: float, least: float) -> None:
    check(value >= least, f"{name} to be at least {least:g}", f"{value:g}", "raise it")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, by timm's name, and its settings."""

    name: str = "adamw"
    """Any optimizer name of `timm.optim.list_optimizers()`, with or without `lookahead_` in front."""

    lr: float = 4e-3
    """Peak learning rate for the global batch of the run."""

    weight_decay: float = 0.05
    """Weight decay of tensors with two or more dimensions; biases, scales and `no_weight_decay()` names have none."""

    betas: tuple[float, float] | None = None
    """Moment decays of Adam-like optimizers; None leaves the optimizer's own."""

    momentum: float = 0.9
    """Momentum of optimizers that have one."""

    eps: float | None = None
    """Term added to the denominator; None leaves the optimizer's own."""

    layer_decay: float | None = None
    """Factor of the learning rate from each layer to the one below, by the model's `group_matcher()`; None is off."""

    layer_decay_by: Literal["layer", "stage"] = "layer"
    """What that counts: layers as the model groups them for it, or whole stages."""

    def __post_init__(self) -> None:
        check(self.lr > 0, "a positive learning rate", f"{self.lr:g}", "set optimizer.lr above 0")
        check_range("optimizer.lr", self.lr, 0, math.inf)
        _check_at_least("optimizer.weight_decay", self.weight_decay, 0)
        check_range("optimizer.weight_decay", self.weight_decay, 0, math.inf)
        for name, value in (("momentum", self.momentum), *(("betas", beta) for beta in self.betas or ())):
            check(
                0 <= value < 1,
                f"optimizer.{name} of at least 0 and below 1",
                f"{value:g}",
                "give the share of the past that a step keeps, such as 0.9",
            )
        if self.eps is not None:
            check_range("optimizer.eps", self.eps, 0, math.inf)
        check(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            "optimizer.layer_decay above 0 and at most 1",
            f"{self.layer_decay}",
            "give the factor from each layer to the one below, such as 0.9, or None",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the run, set anew for every optimizer update."""

    name: Literal["cosine", "constant"] = "cosine"
    """Shape after the warmup: half a cosine from the peak down to `min_lr`, or the peak throughout."""

    warmup_epochs: float = 10
    """Epochs of linear rise from `warmup_lr` to the peak, counted within the epochs of the run; the cosine spans those
    after them."""

    warmup_lr: float = 0.0
    """Learning rate of the first update when there is a warmup; the published recipes start at 0."""

    min_lr: float = 1e-6
    """Learning rate that the cosine has come down to after the last update; `lr_scale` of layer decay scales it too."""

    def __post_init__(self) -> None:
        _check_at_least("schedule.warmup_epochs", self.warmup_epochs, 0)
        _check_at_least("schedule.warmup_lr", self.warmup_lr, 0)
        _check_at_least("schedule.min_lr", self.min_lr, 0)


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """An exponential moving average of the weights, which by default is validated and kept in place of them."""

    decay: float | None = None
    """Share of the average that each update keeps, such as 0.9999; None is off."""

    warmup: bool = False
    """Start with a small decay and let it grow to `decay`, for short runs."""

    evaluate: bool = True
    """Validate the average and keep its best state; otherwise the weights themselves are, and checkpoints hold the
    average beside them."""

    def __post_init__(self) -> None:
        check(
            self.decay is None or 0 < self.decay < 1,
            "an ema.decay between 0 and 1",
            f"{self.decay}",
            "use a value such as 0.9999, or None to turn the average off",
        )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The run itself: length, precision, devices, checkpoints and logs."""

    epochs: int = 120
    """Passes over the training data."""

    seed: int = 0
    """Seed of every random number in the run; each rank draws its own stream from it."""

    precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast type; fp16 scales the loss and needs a GPU."""

    accumulate_steps: int = 1
    """Batches whose gradients are averaged into one optimizer update."""

    clip_norm: float | None = None
    """Largest norm of the whole gradient; None leaves it as it is."""

    skip_nonfinite: int | None = None
    """Leave out steps whose loss or gradient is not finite, and stop at this many in a row; None stops at the first.

    The learning rate goes on; weights, averages and BatchNorm statistics stay as they were. `steps.csv` and
    `metrics.csv` count them as `skipped`. With fp16 the steps by which loss scaling finds its factor count too: allow
    20 or more."""

    float32_modules: tuple[str, ...] = ()
    """Modules that compute in float32 under autocast, by name; a star stands for anything between two dots."""

    monitor_activations: bool = False
    """Note the largest magnitude of the outputs of `monitored_modules` at every step, as `activation_max.MODULE` in
    `metrics.csv`, and name the first of them that is not finite where the run stops for that. For networks that blow up
    deep inside, as UniRepLKNet can on images of unusual shapes; the module named then goes into `float32_modules`, and
    `clip_norm` and a longer warmup help. Each step waits for the device once."""

    monitored_modules: tuple[str, ...] = ("stages.*.blocks.*",)
    """Modules that `monitor_activations` watches, by name, with stars as above."""

    activation_limit: float = 1e4
    """Magnitude above which `monitor_activations` warns, once for each module; fp16 ends at 65504."""

    sharding: Literal["none", "fsdp"] = "none"
    """Keep a copy of parameters and optimizer state in every process, or spread them with FSDP2; both leave the same
    checkpoints. Without effect in one process."""

    compile: bool = False
    """Run the training steps through `torch.compile`; validation stays eager."""

    channels_last: bool = False
    """Keep the weights and the four-dimensional inputs in the channels_last memory format."""

    sync_batch_norm: bool = True
    """Share BatchNorm statistics between processes; without effect in one process."""

    device: Literal["auto", "cpu"] = "auto"
    """The accelerator of this machine if there is one, or the CPU in any case."""

    checkpoint_every_steps: int | None = None
    """Optimizer updates between checkpoints within an epoch; None saves at the end of epochs only."""

    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk, besides the best weights."""

    log_every_steps: int = 10
    """Optimizer updates between two rows of `steps.csv`; the loss is read from the device only then."""

    tensorboard: bool = True
    """Write TensorBoard events."""

    wandb: bool = False
    """Log to Weights & Biases as well; needs widefield[wandb]."""

    def __post_init__(self) -> None:
        check_seed("trainer.seed", self.seed)
        for name in ("epochs", "accumulate_steps", "keep_checkpoints", "log_every_steps"):
            _check_at_least(f"trainer.{name}", getattr(self, name), 1)
        for name in ("epochs", "accumulate_steps"):
            check_range(f"trainer.{name}", getattr(self, name), 1, _MOST, "lower it")
        if self.checkpoint_every_steps is not None:
            _check_at_least("trainer.checkpoint_every_steps", self.checkpoint_every_steps, 1)
        if self.skip_nonfinite is not None:
            _check_at_least("trainer.skip_nonfinite", self.skip_nonfinite, 1)
        check(
            not (self.compile and self.float32_modules),
            "trainer.float32_modules without trainer.compile",
            "both",
            "turn one of them off",
        )
        check(
            not (self.compile and self.monitor_activations),
            "trainer.monitor_activations without trainer.compile",
            "both",
            "turn one of them off",
        )
        check(
            bool(self.monitored_modules),
            "trainer.monitored_modules",
            "none",
            "name some, such as stages.*, or leave trainer.monitor_activations off",
        )
        check(
            self.activation_limit > 0,
            "a positive trainer.activation_limit",
            f"{self.activation_limit:g}",
            "raise it",
        )
        check(
            self.sharding == "none" or (self.precision != "fp16" and not self.compile),
            "trainer.sharding fsdp without trainer.compile and with precision no or bf16",
            f"precision {self.precision} and compile {self.compile}",
            "change them, or use trainer.sharding none",
        )
        check(
            self.clip_norm is None or 0 < self.clip_norm < math.inf,
            "a positive trainer.clip_norm",
            f"{self.clip_norm}",
            "give the largest norm, or use None for no clipping",
        )
