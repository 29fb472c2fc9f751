from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from widefield._core.errors import InputError
from widefield.data import DataConfig
from widefield.engine import OptimizerConfig, TrainerConfig
from widefield.models.size import check_size
from widefield.tasks.classification import ModelConfig
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.classification.config import RunConfig, read_config
from widefield.tasks.classification.footprint import check_step_fits

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("make", "told"),
    [
        *[(lambda v=v: OptimizerConfig(lr=v), "learning rate|optimizer.lr") for v in (-1.0, 0.0, NAN, INF)],
        *[(lambda v=v: OptimizerConfig(weight_decay=v), "optimizer.weight_decay") for v in (-0.1, NAN, INF)],
        *[(lambda v=v: OptimizerConfig(momentum=v), "optimizer.momentum") for v in (-0.1, 1.0, NAN, INF)],
        *[(lambda v=v: OptimizerConfig(betas=(0.9, v)), "optimizer.betas") for v in (-0.1, 1.0, NAN)],
        *[(lambda v=v: OptimizerConfig(eps=v), "optimizer.eps") for v in (-1e-8, NAN, INF)],
        *[(lambda v=v: OptimizerConfig(layer_decay=v), "optimizer.layer_decay") for v in (-0.5, 0.0, 1.5, NAN)],
        *[(lambda v=v: TrainerConfig(clip_norm=v), "trainer.clip_norm") for v in (-1.0, 0.0, NAN, INF)],
        *[(lambda v=v: TrainerConfig(seed=v), r"trainer.seed from 0 to 2 \*\* 64 - 1") for v in (-1, 2**64)],
        *[(lambda v=v: DataConfig(split_seed=v), "split_seed from 0") for v in (-1, 2**64)],
        (lambda: TrainerConfig(epochs=10**9), "trainer.epochs"),
        (lambda: TrainerConfig(accumulate_steps=10**9), "trainer.accumulate_steps"),
        (lambda: DataConfig(batch_size=10**9), "batch_size"),
        (lambda: DataConfig(image_size=100_000), "image_size .* at most 13377"),
        (lambda: DataConfig(std=(1.0, NAN, 1.0)), "each std"),
        (lambda: DataConfig(mean=(1.0, INF, 1.0)), "each mean"),
        *[(lambda v=v: ModelConfig(drop_path_rate=v), "model.drop_path_rate") for v in (-0.1, 1.5, NAN, INF)],
        *[(lambda v=v: ModelConfig(drop_rate=v), "model.drop_rate") for v in (-0.1, 1.5, NAN)],
        (lambda: ModelConfig(head_init_scale=INF), "model.head_init_scale"),
        (lambda: ModelConfig(kernel_sizes=(-3, 5, 5, 5)), "model.kernel_sizes that are odd, but got -3"),
        (lambda: RunConfig(model=ModelConfig(kernel_sizes=(10_001, 5, 5, 5))), "kernels of at most 447 .* 10001"),
        (lambda: ModelConfig(options=("depths=[100000000, 1]",)).arguments(), "numbers of at most 1,000,000"),
        (lambda: ModelConfig(options=("a=.inf",)).arguments(), "numbers of at most 1,000,000"),
    ],
)
def test_numbers_that_cannot_work_are_named(make: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()


def test_the_limits_themselves_are_taken() -> None:
    OptimizerConfig(weight_decay=0, momentum=0, betas=(0, 0.999), eps=0, layer_decay=1)
    TrainerConfig(seed=2**64 - 1)
    DataConfig(split_seed=2**64 - 1, image_size=13_377)
    ModelConfig(drop_path_rate=1, drop_rate=1)
    RunConfig(model=ModelConfig(kernel_sizes=(447, 5, 5, 5)))


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1" + "0" * 400])
@pytest.mark.parametrize("field", ["optimizer: {lr: #}", "ema: {decay: #}", "optimizer: {betas: [0.9, #]}"])
def test_a_config_file_has_finite_numbers(field: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(field.replace("#", value))
    with pytest.raises(InputError, match=r"Expected (optimizer|ema)\.\w+ to be a finite number, but got"):
        read_config(path)


@pytest.mark.parametrize("text", ["[" * 5000, "trainer: {seed: " + "1" * 5000 + "}"])
def test_a_config_file_that_cannot_be_parsed_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="a config file in YAML"):
        read_config(path)


def test_a_hostile_value_is_not_repeated_in_full(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"] + [
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    path = tmp_path / "config.yaml"
    path.write_text("\n".join([*lines, "model: {name: *i}"]))
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert len(str(caught.value)) < 3000


def test_a_network_is_measured_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="replknet_nano", kernel_sizes=(13, 13, 13, 13))
    state = torch.get_rng_state()
    probe = check_size(lambda: make_classifier(config, 10), "it")
    assert torch.equal(torch.get_rng_state(), state)
    needed = sum(parameter.numel() for parameter in probe.parameters()) * 4
    monkeypatch.setattr("widefield.models.size.memory_bytes", lambda: needed)
    make_classifier(config, 10)
    with pytest.raises(InputError, match=r"GB of parameters are needed 2 times: lower its kernel sizes, widths or"):
        make_classifier(config, 10, copies=2)
    with pytest.raises(InputError, match=r"of which a network can be made, but got replknet_nano with .*negative"):
        make_classifier(ModelConfig(name="replknet_nano", options=("channels=[-1, 1, 1, 1]",)), 10)
    monkeypatch.setattr("widefield.models.size._MOST_TENSORS", 50)
    with pytest.raises(InputError, match=r"a network of at most 50 tensors, but got replknet_nano with .* lower its d"):
        make_classifier(config, 10)


def test_a_step_that_cannot_fit_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_classifier(ModelConfig(name="replknet_nano"), 10)

    def fits(**changes: bool) -> None:
        settings = {"is_low_precision": False, "keeps_inputs": True, **changes}
        check_step_fits(model, 64, 8, torch.device("cpu"), **settings)

    fits()
    images = 8 * 3 * 64 * 64 * 4
    monkeypatch.setattr("widefield.tasks.classification.footprint.memory_bytes", lambda: images)
    fits(keeps_inputs=False)
    for changes in ({}, {"is_low_precision": True}):
        with pytest.raises(InputError, match=r"8 images of 64 px that fits into .* at least 0\.\d GB that it"):
            fits(**changes)
    assert next(model.parameters()).device.type == "cpu"
