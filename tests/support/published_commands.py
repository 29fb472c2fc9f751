"""What published training commands resolve to, and the same settings read out of a run config of ours.

``records/recipes.json`` holds figures: the options of commands as the authors' own parsers resolve them, the images
behind one update, and samples of the learning rate.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from widefield.data.config import IMAGENET_MEAN, IMAGENET_STD
from widefield.data.transforms import batch_mixing
from widefield.engine import make_optimizer
from widefield.nn import DecomposedConv2d, ReparamConv2d
from widefield.recipes import RECIPES
from widefield.tasks.classification import RunConfig
from widefield.tasks.classification.card import make_classifier

COMMANDS: list[dict[str, Any]] = json.loads((Path(__file__).with_name("records") / "recipes.json").read_text())

CONFIGS = {name: function() for name, function in RECIPES.items()}

CLASSES = {"imagenet-1k": 1000, "imagenet-22k": 21841}
SIZES = {"tiny": "t", "small": "s", "base": "b", "large": "l"}
WIDTHS = {"t": 96, "s": 96, "b": 128, "l": 192}

WITHOUT_COUNTERPART: dict[str, tuple[Any, str]] = {
    "resplit": (False, "augmentation has no splits of which one would stay clean"),
    "warmup_steps": (-1, "the warm-up is counted in epochs; -1 leaves it to them"),
}
"""Settings that no config of ours has: the only value that a command may have, and why."""


@dataclass(frozen=True)
class Stated:
    """A config of ours and the options of a command, for the settings that have an effect only with others."""

    config: RunConfig
    settings: Mapping[str, Any]

    @property
    def subject(self) -> str:
        """Recipe of the network that the options on the architecture are about: where one teaches, the teacher."""
        teacher = self.config.distillation.teacher
        return self.config.recipe if teacher is None else Path(teacher).name

    @functools.cached_property
    def network(self) -> nn.Module:
        with torch.device("meta"):
            return make_classifier(CONFIGS[self.subject].model, 1000)

    @functools.cached_property
    def decays(self) -> dict[str, Any]:
        """The real optimizer's group of a matrix."""
        optimizer = make_optimizer(nn.Linear(2, 2), self.config.optimizer)
        return next(group for group in optimizer.param_groups if group["params"][0].ndim == 2)

    @functools.cached_property
    def mixing(self) -> Any:
        return batch_mixing(self.config.augmentation, 1000, 2)


def _as_it_is(value: Any) -> Callable[[Stated, Any], Any]:
    return lambda stated, published: value(stated.config)


def _crop(stated: Stated, published: float | None) -> float | None:
    data = stated.config.data
    found = (data.crop_fraction, data.crop_mode)
    # Without one, the code crops 224 / 256 below 384 pixels, and squeezes the whole image above.
    expected = (1.0, "squash") if data.image_size >= 384 else (224 / 256, "center")
    return None if found == expected else data.crop_fraction


def _fine_tune(stated: Stated, published: str) -> str:
    weights = stated.config.model.weights
    if weights is None:
        return ""
    root = CONFIGS[Path(weights).name].data.root
    named = [name for name in CLASSES if name.rpartition("-")[2].upper() in published.upper()]
    return published if published and (not named or root in named) else weights


def _width(stated: Stated, published: float) -> Any:
    base = WIDTHS[CONFIGS[stated.subject].model.name[-1]]
    network: Any = stated.network
    channels = [stage["num_chs"] for stage in network.feature_info]
    return published if channels == [int(published * base * 2**stage) for stage in range(4)] else channels


def _kernels(stated: Stated, published: list[int]) -> list[int]:
    stages: Any = stated.network.stages
    layers = [next(m for m in stage.modules() if isinstance(m, DecomposedConv2d | ReparamConv2d)) for stage in stages]
    small = {layer.small.conv.kernel_size[0] for layer in layers if layer.small is not None}
    return [*(layer.kernel_size for layer in layers), *small]


def _layer_scale(stated: Stated, published: float) -> Any:
    default = inspect.signature(type(stated.network)).parameters["layer_scale"].default
    return CONFIGS[stated.subject].model.arguments().get("layer_scale", default)


def _has_norms(stated: Stated, published: bool) -> bool:
    layers = [m for m in stated.network.modules() if isinstance(m, DecomposedConv2d)]
    convolutions = sum(isinstance(m, nn.Conv2d) for layer in layers for m in layer.modules())
    norms = sum(isinstance(m, nn.BatchNorm2d) for layer in layers for m in layer.modules())
    return convolutions == norms > 0


def _of_masks(value: Callable[[Any], Any]) -> Callable[[Stated, Any], Any]:
    # Without "sparse", the options of the masks have no effect.
    return lambda stated, published: published if stated.config.sparsity is None else value(stated.config.sparsity)


def _distilled(stated: Stated, published: str) -> str:
    taught = stated.config.distillation
    if taught.teacher is None:
        return "None"
    # The code's class has its own weight of the other classes and its own temperature, both 1.
    weights = (taught.target_weight, taught.nkd_weight, taught.nkd_temperature, taught.non_target_weight)
    methods = "+".join(taught.methods)
    return methods.upper() if weights == (0, 1, 1, 1) else f"{methods} with {weights}"


def _of_plain_distillation(stated: Stated, published: float) -> float:
    # They do not reach the normalised loss.
    return published if stated.settings["distill_type"] == "NKD" else float("nan")


SETTINGS: dict[str, Callable[[Stated, Any], Any]] = {
    "model": lambda stated, _: CONFIGS[stated.subject].model.name,
    "drop_path": _as_it_is(lambda c: c.model.drop_path_rate),
    "input_size": _as_it_is(lambda c: c.data.image_size),
    "head_init_scale": _as_it_is(lambda c: c.model.head_init_scale),
    "use_checkpoint": _as_it_is(lambda c: c.model.grad_checkpointing),
    "finetune": _fine_tune,
    "layer_scale_init_value": _layer_scale,
    "kernel_size": _kernels,
    "width_factor": _width,
    "Decom": lambda stated, _: any(isinstance(m, DecomposedConv2d) for m in stated.network.modules()),
    "bn": _has_norms,
    # Optimizer and schedule
    "lr": _as_it_is(lambda c: c.optimizer.lr),
    "min_lr": _as_it_is(lambda c: c.schedule.min_lr),
    "warmup_epochs": _as_it_is(lambda c: c.schedule.warmup_epochs),
    "epochs": _as_it_is(lambda c: c.trainer.epochs),
    "weight_decay": lambda stated, _: stated.decays["weight_decay"],
    # Ours is constant.
    "weight_decay_end": lambda stated, end: None if end is None else stated.decays["weight_decay"],
    "layer_decay": _as_it_is(lambda c: 1.0 if c.optimizer.layer_decay is None else c.optimizer.layer_decay),
    "clip_grad": _as_it_is(lambda c: c.trainer.clip_norm),
    "opt": _as_it_is(lambda c: c.optimizer.name),
    "opt_eps": lambda stated, _: stated.decays["eps"],
    "opt_betas": lambda stated, betas: (
        None if betas is None and stated.decays["betas"] == (0.9, 0.999) else [*stated.decays["betas"]]
    ),
    "momentum": _as_it_is(lambda c: c.optimizer.momentum),
    "use_amp": _as_it_is(lambda c: c.trainer.precision != "no"),
    # Average of the weights
    "model_ema": _as_it_is(lambda c: c.ema.decay is not None),
    "model_ema_decay": lambda stated, decay: stated.config.ema.decay if stated.settings["model_ema"] else decay,
    "model_ema_eval": _as_it_is(lambda c: c.ema.decay is not None and c.ema.evaluate),
    # Data and their augmentation
    "data_set": _as_it_is(lambda c: "IMNET" if c.data.root == "imagenet-1k" else "image_folder"),
    "nb_classes": _as_it_is(lambda c: CLASSES[c.data.root]),
    "disable_eval": _as_it_is(lambda c: c.data.validation_fraction == 0),
    "imagenet_default_mean_and_std": _as_it_is(lambda c: (c.data.mean, c.data.std) == (IMAGENET_MEAN, IMAGENET_STD)),
    "crop_pct": _crop,
    "color_jitter": _as_it_is(lambda c: c.augmentation.color_jitter),
    "aa": _as_it_is(lambda c: c.augmentation.auto_augment),
    "smoothing": _as_it_is(lambda c: c.augmentation.label_smoothing),
    "train_interpolation": _as_it_is(lambda c: c.data.interpolation),
    "reprob": _as_it_is(lambda c: c.augmentation.random_erasing),
    "remode": _as_it_is(lambda c: c.augmentation.random_erasing_mode),
    "recount": _as_it_is(lambda c: c.augmentation.random_erasing_count),
    "mixup": _as_it_is(lambda c: c.augmentation.mixup),
    "cutmix": _as_it_is(lambda c: c.augmentation.cutmix),
    "cutmix_minmax": lambda stated, _: None if stated.mixing is None else stated.mixing.cutmix_minmax,
    "mixup_prob": _as_it_is(lambda c: c.augmentation.mixup_prob),
    "mixup_switch_prob": _as_it_is(lambda c: c.augmentation.mixup_switch_prob),
    "mixup_mode": lambda stated, mode: mode if stated.mixing is None else stated.mixing.mode,
    # Masks
    "sparse": _as_it_is(lambda c: c.sparsity is not None),
    "sparsity": _of_masks(lambda masks: masks.sparsity),
    "sparse_init": _of_masks(lambda masks: masks.allocation),
    "growth": _of_masks(lambda masks: masks.grow),
    "prune": _of_masks(lambda masks: masks.prune),
    "prune_rate": _of_masks(lambda masks: masks.prune_fraction),
    "update_frequency": _of_masks(lambda masks: masks.update_every),
    "only_L": _of_masks(lambda masks: (masks.which, masks.pattern) != ("matrices", "")),
    # Distillation
    "distill_type": _distilled,
    "T": _of_plain_distillation,
    "alpha": _of_plain_distillation,
}
"""How each option reads in a config of ours."""


def network_of(settings: Mapping[str, Any]) -> str:
    """Return our name of a command's network."""
    family, _, variant = settings["model"].lower().replace("-", "_").partition("_")
    return f"{family}_{SIZES.get(variant, variant)}"


def recipes_for(command: Mapping[str, Any]) -> list[str]:
    """Return the recipes of ours that stand for a command: of its network, images, start and number of epochs."""
    settings = command["settings"]
    found = []
    for name in RECIPES:
        stated = Stated(CONFIGS[name], settings)
        config = stated.config
        if (config.distillation.teacher is not None) != (settings.get("distill_type", "None") != "None"):
            continue
        if CONFIGS[stated.subject].model.name != network_of(settings) or config.model.options not in ((), TAUGHT):
            continue
        same = ("input_size", "epochs", "data_set", "finetune")
        if all(SETTINGS[key](stated, settings[key]) == settings[key] for key in same):
            found.append(name)
    return found


TAUGHT = ("small_kernel_size=7",)
"""Options of the students; other recipes with options are studies, for which there are no commands."""
