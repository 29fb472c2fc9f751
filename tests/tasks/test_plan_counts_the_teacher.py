"""Memory and time of a run that distils: those of its teacher are in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from tasks.distillation_support import DATA, DIGITS, student_run, write_teacher
from torch import Tensor

from widefield._core.errors import InputError
from widefield.tasks.classification import ClassifierCard, ModelConfig, RunConfig, save_classifier, trial
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.classification.estimate import estimate
from widefield.tasks.classification.plan import plan_for_memory
from widefield.tasks.classification.trial import Trial, TrialPlan, run_trials
from widefield.tasks.distillation import DistillationConfig, Teacher

PLAN = TrialPlan(sizes=(2, 4), num_classes=10, device="cpu", timed_steps=3, has_data=True)


@pytest.mark.parametrize("method", ["kd", "nkd", "feature"])
def test_every_step_asks_the_teacher_once_and_validation_does_not(
    method: Literal["kd", "nkd", "feature"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answer = Teacher.__call__

    def noted(self: Teacher, images: Tensor) -> Any:
        asked.append(len(images))
        return answer(self, images)

    monkeypatch.setattr(Teacher, "__call__", noted)
    config = student_run(
        write_teacher(tmp_path / "teacher.safetensors"), methods=(method,), trainer={"precision": "bf16"}
    )
    *sizes, last = trial._trials(config, PLAN)
    assert [tried.batch for tried in sizes if isinstance(tried, Trial)] == [2, 4]
    assert not isinstance(last, Trial)
    assert last.timed is not None
    assert last.timed.steps == 3
    # Two steps to warm up and one of each size, then the timed ones.
    assert asked == [2] * 3 + [4] * 3 + [4] * 3


def test_its_weights_are_part_of_the_peak(tmp_path: Path) -> None:
    model = ModelConfig(name="unireplknet_n")
    network = make_classifier(model, len(DIGITS))
    card = ClassifierCard(model=model, data=DATA, classes=DIGITS)
    save_classifier(tmp_path / "teacher.safetensors", network.state_dict(), card)
    config = student_run(tmp_path / "teacher.safetensors", methods=("kd",))
    alone = replace(config, distillation=DistillationConfig())
    plan = replace(PLAN, sizes=(2,), timed_steps=0)
    (taught,), (lonely,) = run_trials(config, plan).sizes, run_trials(alone, plan).sizes
    weights_bytes = 4 * sum(parameter.numel() for parameter in network.parameters())
    assert weights_bytes > 70_000_000
    assert taught.peak_bytes - lonely.peak_bytes > weights_bytes


def without_teacher(folder: Path) -> RunConfig:
    return student_run(folder / "nowhere.safetensors")


def test_an_estimate_goes_without_a_teacher_that_is_missing_and_says_so(tmp_path: Path) -> None:
    config = replace(without_teacher(tmp_path), data=replace(DATA, batch_size=2))
    found = estimate(config, device="cpu")
    assert found.missing_teacher is not None
    assert found.missing_teacher.startswith("Expected a run folder or a checkpoint file, but got nothing at ")
    assert found.trial is not None
    missing = replace(config, data=replace(config.data, root=str(tmp_path / "no-data")))
    assert estimate(missing, device="cpu").missing_teacher == "The data are missing, whose classes it has to share."


def test_a_plan_needs_its_teacher(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected a run folder or a checkpoint file, but got nothing at"):
        plan_for_memory(without_teacher(tmp_path), 10**10, 10, device="cpu")


def test_a_teacher_for_other_classes_is_refused(tmp_path: Path) -> None:
    config = student_run(write_teacher(tmp_path / "teacher.safetensors", classes=DIGITS[:3]))
    with pytest.raises(InputError, match="Expected a teacher for the 10 classes of the data"):
        next(trial._trials(config, PLAN))
