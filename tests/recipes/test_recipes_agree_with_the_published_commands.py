"""Every setting of every recorded command, and its learning rate at every sampled update, against the recipe for it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.published_commands import COMMANDS, CONFIGS, SETTINGS, WITHOUT_COUNTERPART, Stated, network_of, recipes_for
from torch import nn

from widefield.engine import make_optimizer, make_scheduler
from widefield.nn import ReparamConv2d
from widefield.tasks.classification import RunConfig
from widefield.tasks.classification.card import make_classifier

NAMES = [f"{place}-{network_of(command['settings'])}" for place, command in enumerate(COMMANDS)]


def differences(config: RunConfig, command: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return ours and theirs of each setting that differs, and of the images behind one update."""
    found: dict[str, tuple[Any, Any]] = {}
    stated = Stated(config, command["settings"])
    for name, published in command["settings"].items():
        ours = WITHOUT_COUNTERPART[name][0] if name in WITHOUT_COUNTERPART else SETTINGS[name](stated, published)
        theirs = network_of(command["settings"]) if name == "model" else published
        if ours != theirs:
            found[name] = (ours, theirs)
    if config.update_batch != command["update_batch"]:
        found["update_batch"] = (config.update_batch, command["update_batch"])
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_one_recipe_stands_for_the_command_and_has_every_setting_of_it(command: dict[str, Any]) -> None:
    names = recipes_for(command)
    assert len(names) == 1
    assert command["unknown_options"] == []
    assert differences(CONFIGS[names[0]], command) == {}


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
@pytest.mark.parametrize("layer_scale", [1.0, 0.7**5])
def test_the_learning_rate_is_the_published_one_at_every_sample(command: dict[str, Any], layer_scale: float) -> None:
    config, curve = CONFIGS[recipes_for(command)[0]], command["lr_curve"]
    assert curve["updates"] == config.trainer.epochs * curve["updates_per_epoch"]
    optimizer = make_optimizer(nn.Linear(2, 2), replace(config.optimizer, layer_decay=None))
    for group in optimizer.param_groups:
        group["lr_scale"] = layer_scale
    scheduler = make_scheduler(optimizer, config.schedule, config.trainer.epochs, curve["updates_per_epoch"])
    first = optimizer.param_groups[0]["lr"]
    found = {}
    for update in map(int, curve["at"]):
        scheduler.step_update(update)
        found[str(update)] = optimizer.param_groups[0]["lr"]
    assert first == found["0"]
    assert found == pytest.approx({key: layer_scale * rate for key, rate in curve["at"].items()}, rel=1e-9, abs=0)


def test_every_setting_of_a_command_is_known_here() -> None:
    named = {name for command in COMMANDS for name in command["settings"]}
    assert named == {*SETTINGS, *WITHOUT_COUNTERPART}
    assert not {*SETTINGS} & {*WITHOUT_COUNTERPART}


OTHERS: dict[str, Any] = {
    "color_jitter": 0.3,
    "opt_eps": 1e-6,
    "opt_betas": [0.9, 0.95],
    "weight_decay_end": 0.1,
    "clip_grad": 5.0,
    "crop_pct": 0.9,
    "remode": "const",
    "recount": 2,
    "mixup_mode": "elem",
    "model_ema_eval": None,
    "kernel_size": [31, 29, 27, 13, 5],
    "width_factor": 1.0,
    "layer_scale_init_value": 1.0,
    "imagenet_default_mean_and_std": False,
    "nb_classes": 21841,
    "resplit": True,
    "warmup_steps": 100,
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_value_of_a_setting_would_be_seen(name: str) -> None:
    command = copy.deepcopy(next(c for c in COMMANDS if "kernel_size" in c["settings"]))
    changed = not command["settings"][name] if OTHERS[name] is None else OTHERS[name]
    command["settings"][name] = changed
    assert set(differences(CONFIGS["slak_t_in1k_300ep"], command)) == {name}


@pytest.mark.parametrize(
    ("name", "millions"), [("convnext_t_in1k_300ep_by_slak", 28.6), ("convnext_s_in1k_300ep_by_slak", 50.2)]
)
def test_the_students_are_convnexts_with_a_norm_behind_each_kernel(name: str, millions: float) -> None:
    with torch.device("meta"):
        student = make_classifier(CONFIGS[name].model, 1000)
    assert sum(parameter.numel() for parameter in student.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    kernels = [module for module in student.modules() if isinstance(module, ReparamConv2d)]
    assert len(kernels) == (18 if "_t_" in name else 36)
    assert all(kernel.kernel_size == 7 and kernel.small is None for kernel in kernels)


def test_what_no_validation_scores_trains_on_all_images() -> None:
    without = {name for name in CONFIGS if CONFIGS[name].data.validation_fraction == 0}
    assert without == {name for name in CONFIGS if "in22k_90ep" in name or name.endswith("megdata73m_15ep")}
