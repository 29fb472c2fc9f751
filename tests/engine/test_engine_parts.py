from __future__ import annotations

import random
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.engine import (
    EmaConfig,
    ModelEma,
    OptimizerConfig,
    ScheduleConfig,
    TrainerConfig,
    make_accelerator,
    make_optimizer,
    make_scheduler,
    move_batch,
    seed_everything,
)
from widefield.engine.checkpointing import (
    flatten_optimizer_state,
    restore_optimizer_state,
    restore_rng_state,
    rng_state,
)
from widefield.engine.model_state import full_state, load_state, unique_state

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Sample:
    image: Tensor
    boxes: list[Tensor]
    name: str


def test_the_config_needs_no_library() -> None:
    libraries = {"accelerate", "timm", "tensorboard", "wandb"}
    code = f"import sys, widefield.engine.config; print(sorted({libraries} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerConfig(lr=0), "Expected a positive learning rate, but got 0"),
        (lambda: OptimizerConfig(weight_decay=-1), "Expected optimizer.weight_decay to be at least 0, but got -1"),
        (lambda: ScheduleConfig(warmup_epochs=-1), "Expected schedule.warmup_epochs to be at least 0"),
        (lambda: ScheduleConfig(warmup_lr=-1), "Expected schedule.warmup_lr to be at least 0"),
        (lambda: ScheduleConfig(min_lr=-1), "Expected schedule.min_lr to be at least 0"),
        (lambda: EmaConfig(decay=1.0), "Expected an ema.decay between 0 and 1, but got 1.0"),
        (lambda: TrainerConfig(epochs=0), "Expected trainer.epochs to be at least 1, but got 0"),
        (lambda: TrainerConfig(checkpoint_every_steps=0), "Expected trainer.checkpoint_every_steps to be at least 1"),
        (lambda: TrainerConfig(skip_nonfinite=0), "Expected trainer.skip_nonfinite to be at least 1, but got 0"),
        (
            lambda: TrainerConfig(compile=True, float32_modules=("stem",)),
            "Expected trainer.float32_modules without trainer.compile, but got both",
        ),
        (
            lambda: TrainerConfig(sharding="fsdp", precision="fp16"),
            "Expected trainer.sharding fsdp without trainer.compile and with precision no or bf16, but got .* fp16",
        ),
        (lambda: TrainerConfig(sharding="fsdp", compile=True), "but got precision no and compile True"),
        (lambda: TrainerConfig(clip_norm=0.0), "Expected a positive trainer.clip_norm, but got 0.0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_half_precision_on_the_cpu_is_refused() -> None:
    with pytest.raises(InputError, match="Expected a GPU for precision fp16, but got the CPU: use bf16"):
        make_accelerator(TrainerConfig(precision="fp16", device="cpu"))


class Scaled(nn.Module):
    """A convolution with a bias of three dimensions, a scale and a token that asks for no weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.shift = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(4, 1, 1))})
        self.token = nn.Parameter(torch.zeros(2, 2))
        self.head = nn.Linear(4, 2)

    def no_weight_decay(self) -> set[str]:
        return {"token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem|^token", "blocks": [(r"^shift", (0,))]}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_weight_decay_spares_biases_scales_and_named_parameters(layer_decay: float | None) -> None:
    model = Scaled()
    optimizer = make_optimizer(model, OptimizerConfig(lr=1.0, weight_decay=0.1, layer_decay=layer_decay))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, group in groups.items() if group["weight_decay"]} == {"stem.weight", "head.weight"}
    make_scheduler(optimizer, ScheduleConfig(warmup_epochs=0), 2, 3)
    rates = {name: group["lr"] for name, group in groups.items()}
    expected = (1.0, 0.5, 0.25) if layer_decay else (1.0, 1.0, 1.0)
    assert (rates["head.weight"], rates["shift.bias"], rates["stem.weight"]) == expected


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(InputError, match="Expected the name of a timm optimizer, but got 'adamv': did you mean"):
        make_optimizer(nn.Linear(2, 2), OptimizerConfig(name="adamv"))


def test_settings_reach_the_optimizer() -> None:
    adam = make_optimizer(nn.Linear(2, 2), OptimizerConfig(betas=(0.8, 0.9), eps=1e-3))
    assert (adam.param_groups[0]["betas"], adam.param_groups[0]["eps"]) == ((0.8, 0.9), 1e-3)
    sgd = make_optimizer(nn.Linear(2, 2), OptimizerConfig(name="sgd", momentum=0.7))
    assert sgd.param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("name", ["adamw", "sgd", "lookahead_adamw", "lamb", "nadamw", "adafactor"])
def test_an_optimizer_comes_back_as_it_was(name: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        return model, make_optimizer(model, OptimizerConfig(name=name, lr=0.01))

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 3, 3, 3)).square().mean().backward()
            optimizer.step()

    model, optimizer = build()
    train(model, optimizer, 4)
    tensors, scalars = flatten_optimizer_state(optimizer, model)
    twin, other = build()
    twin.load_state_dict(model.state_dict())
    twin.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    restore_optimizer_state(other, twin, {key: tensor.clone() for key, tensor in tensors.items()}, scalars)
    for learner, its in ((model, optimizer), (twin, other)):
        torch.manual_seed(1)
        train(learner, its, 4)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = make_optimizer(model, OptimizerConfig())
    with pytest.raises(InputError, match="Expected an optimizer over the parameters of the model"):
        flatten_optimizer_state(optimizer, nn.Linear(2, 2))
    tensors, scalars = flatten_optimizer_state(optimizer, model)
    scalars["groups"][0]["params"] = ["other"]
    with pytest.raises(InputError, match="parameters and groups of the checkpoint, but got 2 parameters in 2 groups"):
        restore_optimizer_state(optimizer, model, tensors, scalars)


def test_an_optimizer_with_odd_state_is_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.weight]["odd"] = {1, 2}
    with pytest.raises(InputError, match=r"made of tensors, numbers and strings, but got set at 'state.weight.odd'"):
        flatten_optimizer_state(optimizer, model)
    optimizer.state[model.weight] = {"nested": [(torch.ones(1), 2), {"deep": None}]}
    tensors, scalars = flatten_optimizer_state(optimizer, model)
    restore_optimizer_state(optimizer, model, tensors, scalars)
    assert optimizer.state[model.weight]["nested"] == [(torch.ones(1), 2), {"deep": None}]


def test_the_random_state_comes_back() -> None:
    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            torch.rand(()).item(),
            torch.randn(()).item(),
        ]

    seed_everything(5)
    draw()
    state = rng_state()
    first = draw()
    restore_rng_state(state)
    assert draw() == first
    seed_everything(5)
    assert torch.initial_seed() == 5
    other = draw()
    seed_everything(5, rank=1)
    assert draw() != other


def test_batches_move_whatever_holds_them() -> None:
    image = torch.randn(2, 3, 4, 4)
    batch = {
        "sample": Sample(image=image, boxes=[torch.ones(2)], name="one"),
        "pair": Pair(torch.ones(1), (torch.zeros(1), None)),
        "count": 3,
    }
    moved = move_batch(batch, torch.device("meta"), channels_last=True)
    assert moved["sample"].image.is_meta
    assert moved["sample"].image.is_contiguous(memory_format=torch.channels_last)
    assert moved["sample"].boxes[0].is_meta
    assert moved["sample"].name == "one"
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].right[0].is_meta
    assert moved["count"] == 3
    assert batch["sample"].image is image


def test_the_average_follows_weights_and_statistics_and_copies_counters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    ema = ModelEma(model, EmaConfig(decay=0.75))
    expected = {}
    for step in range(1, 4):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        model(torch.randn(4, 3))
        ema.update(model, step)
        for name, tensor in unique_state(model).items():
            keep = 0.0 if step == 1 or not tensor.is_floating_point() else 0.75
            expected[name] = keep * expected.get(name, 0 * tensor) + (1 - keep) * tensor
    averaged = unique_state(ema.module)
    assert averaged.keys() == expected.keys() == model.state_dict().keys() - {"2.weight"}
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype))
    assert not ema.module.training


def test_weights_of_another_model_are_refused() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="Expected the tensors of this model, but got a difference in bias"):
        full_state(model, {"weight": torch.ones(2, 2)})
    with pytest.raises(InputError, match=r"Expected weight of shape \(2, 2\), but got \(3, 2\)"):
        load_state(model, {"weight": torch.ones(3, 2), "bias": torch.ones(2)})


def test_a_state_that_is_not_made_of_tensors_is_refused() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

    with pytest.raises(InputError, match="state dict holds tensors, but got dict under '_extra_state'"):
        unique_state(Extra(2, 2))
