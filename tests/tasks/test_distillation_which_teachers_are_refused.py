from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tasks.distillation_support import DATA, DIGITS, student_run, write_teacher

from widefield._core.errors import InputError
from widefield.checkpoints.files import write_weights
from widefield.tasks.classification import read_config
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.classification.config import ModelConfig
from widefield.tasks.classification.distillation import start_distillation
from widefield.tasks.distillation import DistillationConfig


def started(teacher: Path | str | None, classes: tuple[str, ...] = DIGITS, **config: Any):
    student = make_classifier(ModelConfig(kernel_sizes=(7, 7, 7, 7)), len(classes))
    settings = DistillationConfig(teacher=None if teacher is None else str(teacher), **config)
    return start_distillation(settings, student, classes=classes, data=DATA, device=torch.device("cpu"))


def test_the_teacher_of_a_run_folder_comes_merged_frozen_and_certified(tmp_path: Path) -> None:
    file = write_teacher(tmp_path / "model.safetensors")
    distillation = started(tmp_path)
    network = distillation.teacher.network
    assert all(module.is_merged for module in network.modules() if hasattr(module, "is_merged"))
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert distillation.record.file == str(file)
    assert distillation.record.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert 0 < distillation.record.merge_relative_error < 1e-5


def test_published_weights_are_recognised(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("replknet_nano", num_classes=10)
    write_weights(tmp_path / "published.safetensors", network.state_dict())
    distillation = started(tmp_path / "published.safetensors")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(distillation.teacher(x).logits, network.eval()(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(
        InputError, match=r"Expected a teacher for the 3 classes of the data, but got .* with 10 outputs: use a teacher"
    ):
        started(tmp_path / "published.safetensors", classes=("a", "b", "c"))


def test_another_model_can_be_named(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=10)
    write_weights(tmp_path / "resnet.safetensors", network.state_dict())
    distillation = started(tmp_path / "resnet.safetensors", teacher_model="resnet10t", methods=("feature",))
    assert distillation.record.model == "resnet10t"
    assert distillation.model.adapters["32"].out_channels == 512


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"image_size": 64},
            r"Expected a teacher for images of 32 pixels, as the student has them, but got .* for 64: "
            r"use --data.image-size 64",
        ),
        (
            {"mean": (0.5, 0.5, 0.5)},
            r"Expected a teacher for images with mean \(0.485, 0.456, 0.406\) and std .*, but got .* for mean "
            r"\(0.5, 0.5, 0.5\) and std .*: set --data.mean and --data.std to the teacher's",
        ),
        (
            {"classes": tuple("0123456798")},
            r"Expected a teacher for the 10 classes of the data, in the same order, but got .* with 10 classes, "
            r"'9' where the data has '8': use a teacher",
        ),
        ({"classes": tuple("01")}, r"but got .* with 2 classes: use a teacher"),
    ],
)
def test_a_teacher_of_other_images_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    teacher = write_teacher(tmp_path / "teacher.safetensors", **changes)
    with pytest.raises(InputError, match=sentence):
        started(teacher)


def test_a_teacher_must_be_named() -> None:
    with pytest.raises(InputError, match=r"Expected a distillation\.teacher, but got None: name a run folder or"):
        started(None)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"temperature": 0.0}, "Expected a positive distillation.temperature, but got 0: use 1 or a bit more"),
        ({"nkd_temperature": -1.0}, "Expected a positive distillation.nkd_temperature, but got -1: use 1 or"),
        ({"temperature": math.nan}, "Expected a positive distillation.temperature, but got nan: use 1 or a bit more"),
        ({"feature_beta": 0.0}, "Expected a positive distillation.feature_beta, but got 0: use 1 or a bit more"),
        ({"kd_weight": -1.0}, "Expected distillation.kd_weight to be at least 0 and finite, but got -1: change it"),
        ({"nkd_weight": math.inf}, "Expected distillation.nkd_weight to be at least 0 and finite, but got inf: change"),
        ({"feature_weight": -1.0}, "Expected distillation.feature_weight to be at least 0 and finite, but got -1"),
        ({"target_weight": -1.0}, "Expected distillation.target_weight to be at least 0 and finite, but got -1"),
        ({"non_target_weight": -0.5}, "Expected distillation.non_target_weight to be at least 0 and finite, but got"),
        ({"methods": ()}, "Expected one or more different distillation.methods, but got (): name some of kd, nkd and"),
        ({"methods": ("kd", "kd")}, "Expected one or more different distillation.methods, but got ('kd', 'kd'): name"),
        (
            {"methods": ("kd", "feature"), "target_weight": 0.0, "kd_weight": 0.0, "feature_weight": 0.0},
            "Expected distillation that trains on something, but got target_weight 0 and no weight for kd and feature: "
            "raise one of them",
        ),
        ({"reductions": ()}, "Expected one or more different strides as distillation.reductions, but got (): name"),
        ({"reductions": (8, 8)}, "Expected one or more different strides as distillation.reductions, but got (8, 8)"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        DistillationConfig(**values)


def test_the_config_is_read_back(tmp_path: Path) -> None:
    config = student_run(tmp_path / "teacher", methods=("feature",), reductions=(8, 32), temperature=2)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert read_config(tmp_path / "config.yaml") == config


def test_a_config_of_one_method_is_refused_with_the_name_of_the_field(tmp_path: Path) -> None:
    config = student_run(tmp_path / "teacher").to_yaml().replace("methods:\n  - nkd", "method: nkd")
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(InputError, match="field of distillation, but got 'method': did you mean 'methods'"):
        read_config(tmp_path / "config.yaml")
