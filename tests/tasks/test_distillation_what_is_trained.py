from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support.families import FAMILIES, Family, images
from support.random_statistics import randomise
from torch import Tensor, nn

from widefield._core.errors import InputError
from widefield.data import Batch
from widefield.engine import (
    EmaConfig,
    OptimizerConfig,
    RunFolder,
    ScheduleConfig,
    Trainer,
    TrainerConfig,
    make_accelerator,
)
from widefield.engine.optim import parameter_groups
from widefield.reparam import merge
from widefield.tasks.distillation import (
    AdaptedStudent,
    DistillationConfig,
    DistillationTask,
    Teacher,
    kd_loss,
    nkd_loss,
    student_weights,
)
from widefield.tasks.distillation.features import answer, stages_at

SMALL = Family("slak_a", {"channels": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_classes": 5})
LARGE = Family("unireplknet_a", {"channels": (16, 16, 24, 40), "depths": (1, 1, 1, 1), "num_classes": 5})


def small() -> nn.Module:
    return SMALL.make(kernel_sizes=(7, 7, 7, 7))


def large() -> nn.Module:
    return LARGE.make(kernel_sizes=(3, 13, 13, 13))


class CrossEntropy:
    """The task of the student alone."""

    monitor = "score"

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch.images).float(), batch.targets)

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        return {"score": float(model(images(2, 3, 64, 64)).sum())}


class Photos:
    """Two batches of noise, the second of them mixed."""

    def __len__(self) -> int:
        return 2

    def epoch(self, epoch: int, start: int = 0):
        for index in range(start, 2):
            x = images(4, 3, 64, 64) + index
            targets = torch.tensor([0, 1, 2, 3])
            yield Batch(x, F.one_hot(targets, 5) * 0.7 + 0.06 if index else targets, torch.arange(4))


def fitted(folder: Path, method: Any, **trainer: Any) -> tuple[nn.Module, nn.Module, Teacher]:
    config = DistillationConfig(methods=(method,), teacher="here", reductions=(16, 32))
    settings = TrainerConfig(**{"epochs": 1, "device": "cpu", "tensorboard": False, **trainer})
    accelerator = make_accelerator(settings)
    student, network = small(), randomise(large())
    merge(network, example=images())
    autocast = accelerator.autocast
    stages = stages_at(network, config.reductions) if method == "feature" else ()
    teacher = Teacher(network, stages, lambda: autocast())
    trained = AdaptedStudent(student, network, config.reductions, 64) if method == "feature" else student
    Trainer(
        trained,
        DistillationTask(CrossEntropy(), teacher, config),
        Photos(),
        RunFolder.create(folder, False, 0),
        trainer=settings,
        optimizer=OptimizerConfig(lr=1e-3, layer_decay=0.7, weight_decay=0.0),
        schedule=ScheduleConfig(warmup_epochs=0),
        ema=EmaConfig(decay=0.5),
        accelerator=accelerator,
    ).fit()
    return trained, student, teacher


@pytest.mark.parametrize("method", ["kd", "nkd", "feature"])
@pytest.mark.parametrize("trainer", [{}, {"precision": "bf16", "accumulate_steps": 2, "channels_last": True}])
def test_the_student_moves_and_the_teacher_stays(tmp_path: Path, method: str, trainer: dict[str, Any]) -> None:
    trained, student, teacher = fitted(tmp_path / "run", method, **trainer)
    untrained, unchanged = small(), randomise(large())
    merge(unchanged, example=images())
    for name, tensor in teacher.network.state_dict().items():
        assert torch.equal(tensor, unchanged.state_dict()[name])
    for (name, now), before in zip(student.named_parameters(), untrained.parameters(), strict=True):
        assert now.isfinite().all()
        assert not torch.equal(now, before), name
    assert (trained is student) == (method != "feature")


@pytest.mark.parametrize("target_weight", [0.0, 0.25])
@pytest.mark.parametrize("methods", [("kd",), ("nkd",), ("feature",), ("feature", "nkd"), ("kd", "nkd", "feature")])
def test_the_loss_is_the_weighted_sum_of_the_tasks_and_those_of_the_methods(methods: Any, target_weight: float) -> None:
    student, network = small(), randomise(large())
    config = DistillationConfig(
        methods=methods,
        target_weight=target_weight,
        kd_weight=0.5,
        nkd_weight=0.7,
        feature_weight=3.0,
        temperature=2.0,
        nkd_temperature=1.5,
        non_target_weight=4.0,
        feature_beta=0.5,
        reductions=(32, 8),
    )
    for batch in Photos().epoch(0):
        torch.manual_seed(0)
        model: Any = AdaptedStudent(student, network, (32, 8), 64) if config.matches_features else student
        stages = stages_at(network, (32, 8)) if config.matches_features else ()
        task = DistillationTask(CrossEntropy(), Teacher(network, stages), config)
        loss = task.loss(model.train(), batch)
        mine, theirs = (
            answer(student, batch.images, stages_at(student, (32, 8))),
            answer(network, batch.images, stages_at(network, (32, 8))),
        )
        expected = target_weight * F.cross_entropy(mine.logits, batch.targets)
        if "kd" in methods:
            expected = expected + 0.5 * kd_loss(mine.logits, theirs.logits, 2.0)
        if "nkd" in methods:
            expected = expected + 0.7 * nkd_loss(mine.logits, theirs.logits, batch.targets, 1.5, 4.0)
        if config.matches_features:
            pairs = zip(model.adapters.values(), mine.features, theirs.features, strict=True)
            distances = [F.smooth_l1_loss(adapter(x), y, beta=0.5) for adapter, x, y in pairs]
            expected = expected + 3.0 * torch.stack(distances).mean()
        torch.testing.assert_close(loss, expected)
        loss.backward()
        # Every parameter has a gradient, which DDP waits for.
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_teacher_answers_within_the_autocast_of_the_run_and_without_gradient() -> None:
    network = randomise(large())

    def context() -> AbstractContextManager[object]:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    within, without = Teacher(network, (3,), context)(images()), Teacher(network, (3,))(images())
    assert [within.logits.dtype, without.logits.dtype] == [torch.bfloat16, torch.float32]
    assert not any(x.requires_grad for x in (within.logits, without.logits, *within.features, *without.features))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_features_come_with_the_same_logits_in_every_family(family: Family) -> None:
    model = randomise(family.make(num_classes=5))
    with torch.no_grad():
        logits, features = answer(model, images(), stages_at(model, (32, 4)))
        torch.testing.assert_close(logits, model(images()), rtol=0, atol=0)
    assert [x.shape[2] for x in features] == [2, 16]


def test_a_network_of_timm_can_teach_and_learn() -> None:
    network = timm.create_model("resnet10t", num_classes=5)
    model = AdaptedStudent(small(), network, (8, 32), 64)
    output = model(images())
    theirs = Teacher(network, stages_at(network, (8, 32)))(images())
    assert [x.shape for x in output.features] == [x.shape for x in theirs.features]
    assert isinstance(model.eval()(images()), Tensor)


def test_adapters_are_decayed_and_scaled_as_the_topmost_layer() -> None:
    student = small()
    student.no_weight_decay = lambda: {"stages.0.blocks.0.fc1.weight"}
    model = AdaptedStudent(student, large(), (16, 32), 64)
    config = OptimizerConfig(layer_decay=0.5, weight_decay=0.1)

    def settings(module: nn.Module) -> dict[int, tuple[float, float]]:
        return {
            id(parameter): (group["lr_scale"], group["weight_decay"])
            for group in parameter_groups(module, config)
            for parameter in group["params"]
        }

    alone, together = settings(student), settings(model)
    assert {key: together[key] for key in alone} == alone
    assert len({scale for scale, _ in alone.values()}) > 3
    assert together[id(model.adapters["16"].weight)] == (1.0, 0.1)
    assert together[id(model.adapters["16"].bias)] == (1.0, 0.0)
    plain = {id(p) for g in parameter_groups(model, OptimizerConfig()) if not g["weight_decay"] for p in g["params"]}
    assert id(student.stages[0].blocks[0].fc1.weight) in plain


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet10t", "swin_tiny_patch4_window7_224"])
def test_patterns_of_timm_group_as_before_behind_the_students_name(name: str) -> None:
    student = timm.create_model(name)
    holder = nn.Module()
    holder.student = student
    from timm.models import group_parameters

    expected = group_parameters(student, student.group_matcher(), reverse=True)
    matcher = AdaptedStudent.group_matcher(holder)  # pyright: ignore[reportArgumentType]
    got = group_parameters(holder, matcher, reverse=True)
    assert got == {f"student.{parameter}": layer for parameter, layer in expected.items()}


def test_the_students_weights_are_taken_out_of_what_was_trained() -> None:
    student = small()
    model = AdaptedStudent(student, large(), (32,), 64)
    taken = student_weights(model, model.state_dict())
    assert taken.keys() == student.state_dict().keys()
    assert all(torch.equal(value, taken[name]) for name, value in student.state_dict().items())
    assert student_weights(student, student.state_dict()).keys() == taken.keys()


def test_what_has_no_such_feature_map_is_told() -> None:
    with pytest.raises(
        InputError,
        match=r"Expected a network with timm's feature_info, .* method feature, but got Linear: use the method",
    ):
        stages_at(nn.Linear(1, 1), (32,))
    with pytest.raises(
        InputError,
        match=r"Expected distillation.reductions among those of SLaK: 4, 8, 16, 32, but got 2, 64: name strides",
    ):
        stages_at(small(), (2, 4, 64))
    with pytest.raises(
        InputError,
        match=r"Expected feature maps of 2x2 at stride 32 from the teacher, as the student has them, but got 3x3: ch",
    ):
        AdaptedStudent(small(), timm.create_model("resnet10t"), (32,), 72)
