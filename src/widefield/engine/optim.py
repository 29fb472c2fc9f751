"""The optimizer and the schedule of its learning rate, from timm."""

from __future__ import annotations

import glob
import logging
from typing import TYPE_CHECKING, Any, cast

from widefield._core.checks import check, check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from timm.scheduler.scheduler import Scheduler
    from torch import nn

    from widefield.engine.config import OptimizerConfig, ScheduleConfig

logger = logging.getLogger(__name__)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters of `model` by weight decay and, with `layer_decay`, by layer.

    One-dimensional parameters, biases of any shape and the names (or patterns) of `model.no_weight_decay()` get no
    weight decay. Frozen parameters are left out, tied ones appear once.

    Args:
        model: Any module; `group_matcher()` gives the layers if it has one, and `layer_decay_ids()` their places where
            they do not follow each other without gaps.
        config: Weight decay and layer decay.

    Returns:
        Groups as torch optimizers take them; `lr_scale` in a group is honoured by timm's schedulers.
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    no_decay = set(getattr(model, "no_weight_decay", set)())
    if config.layer_decay is None:
        return param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=no_decay)
    # timm's layer-wise groups exempt one-dimensional parameters only, not biases of shape (C, 1, 1).
    no_decay |= {glob.escape(name) for name, _ in model.named_parameters() if name.split(".")[-1] == "bias"}
    grouped: Any = model if config.layer_decay_by == "layer" else _ByStage(model)
    groups = param_groups_layer_decay(
        grouped, config.weight_decay, no_weight_decay_list=no_decay, layer_decay=config.layer_decay
    )
    if config.layer_decay_by == "layer" and hasattr(model, "layer_decay_ids"):
        ids: Mapping[str, int] = cast("Any", model).layer_decay_ids()
        names = {parameter: name for name, parameter in model.named_parameters()}
        for group in groups:
            # timm's layers are the ids in the same order: a group has one of them.
            group["lr_scale"] = config.layer_decay ** (max(ids.values()) - ids[names[group["params"][0]]])
    return groups


class _ByStage:
    """A model as timm's grouping looks at it, with one layer for each stage."""

    def __init__(self, model: Any) -> None:
        check(
            hasattr(model, "group_matcher"),
            "a model with group_matcher() for a decay by stages",
            type(model).__name__,
            "use --optimizer.layer-decay-by layer",
        )
        self._model = model
        self.named_parameters = model.named_parameters

    def group_matcher(self, coarse: bool = False) -> Any:
        return self._model.group_matcher(coarse=True)


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer of `config` over the trainable parameters of `model`.

    Args:
        model: Any module with at least one parameter that requires a gradient.
        config: Name and settings.

    Raises:
        InputError: If timm knows no such optimizer or nothing can be trained.
    """
    from timm.optim import create_optimizer_v2, list_optimizers

    known = [str(name) for name in list_optimizers()]
    check_name(config.name.lower().removeprefix("lookahead_"), known, "timm optimizer")
    check(
        any(parameter.requires_grad for parameter in model.parameters()),
        "a model with parameters to train",
        "one whose parameters are all frozen",
        "set requires_grad on those that should learn",
    )
    given = {"betas": config.betas, "eps": config.eps}
    return create_optimizer_v2(
        model,
        opt=config.name,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        param_group_fn=lambda module: parameter_groups(module, config),
        **{name: value for name, value in given.items() if value is not None},
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, epochs: int, updates_per_epoch: int
) -> Scheduler:
    """Build the schedule; `step_update(n)` sets the learning rate of the update after the n-th.

    Source: the code of ConvNeXt, from which RepLKNet, SLaK and UniRepLKNet have it. With W updates of warmup among N,
    update t (from 0) has the rate start + (peak - start) t / (W - 1) if t < W, so that the last of them has the peak,
    and end + (peak - end) (1 + cos(pi (t - W) / (N - W))) / 2 afterwards, so that the cosine starts at the peak. A
    group with an `lr_scale` has that multiple of it, the end included.

    Args:
        optimizer: Its current learning rates are the peak.
        config: Shape, warmup and end.
        epochs: Epochs of the run.
        updates_per_epoch: Optimizer updates in each.
    """
    from widefield.engine.warmup_schedule import WarmupSchedule

    updates = epochs * updates_per_epoch
    warmup = round(config.warmup_epochs * updates_per_epoch)
    if warmup >= updates:
        logger.warning(
            "the warmup of %d updates leaves none of the %d of the run: the learning rate only rises%s; "
            "lower schedule.warmup_epochs",
            warmup,
            updates,
            "" if warmup == updates else ", and its peak is never reached",
        )
    return WarmupSchedule(
        optimizer, shape=config.name, updates=updates, warmup=warmup, start=config.warmup_lr, end=config.min_lr
    )
