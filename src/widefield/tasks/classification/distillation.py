"""From a config to a loaded teacher, the module that is trained, and the task."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from widefield._core.checks import check
from widefield.checkpoints.files import read_weights
from widefield.checkpoints.kinds import check_is_file
from widefield.data import DataConfig
from widefield.engine import RunFolder
from widefield.engine.run_folder import is_main_rank
from widefield.models import load_published
from widefield.reparam import merge
from widefield.tasks.classification.card import find_checkpoint, load_classifier
from widefield.tasks.distillation.config import DistillationConfig
from widefield.tasks.distillation.features import stages_at
from widefield.tasks.distillation.student import AdaptedStudent
from widefield.tasks.distillation.teacher import Teacher

logger = logging.getLogger(__name__)

_RECORD = "teacher.json"


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """Which teacher a run has, as ``teacher.json`` in its folder says."""

    file: str
    model: str
    sha256: str
    """Of the file: a resumed run must have the same teacher."""
    parameters: int
    """After merging."""
    merge_relative_error: float


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a run with a teacher is made of."""

    model: nn.Module
    """What is trained: the student itself, or an `AdaptedStudent` around it."""
    teacher: Teacher
    record: TeacherRecord

    def check_same_teacher(self, folder: RunFolder) -> None:
        """Write ``teacher.json``, or compare it with the one that lies in the folder of a resumed run.

        Raises:
            InputError: If the run was begun with other weights of the teacher.
        """
        if not is_main_rank():
            return
        if (folder.path / _RECORD).is_file():
            _check_digest(folder.path, self.record.file, self.record.sha256)
        else:
            folder.write_json(_RECORD, asdict(self.record))


def check_teacher_file(config: DistillationConfig, folder: Path) -> None:
    """Compare the teacher's file with the one that the run in a folder was begun with, before it is read.

    Raises:
        InputError: If it has changed, or the record of it cannot be read.
    """
    if config.teacher is not None and (folder / _RECORD).is_file():
        file = find_checkpoint(Path(config.teacher), "branched")
        check_is_file(file)
        _check_digest(folder, str(file), _digest(file))


def _check_digest(folder: Path, file: str, digest: str) -> None:
    path = folder / _RECORD
    known = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    check(
        isinstance(known, str),
        f"the record of the teacher of the run in {folder}",
        f"a damaged file, {path}",
        "restore it from a copy, or delete it if the teacher is the same",
    )
    check(
        known == digest,
        f"the teacher that the run in {folder} was begun with",
        f"{file}, which has changed since",
        "restore that file, or start a new run in another folder",
    )


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def start_distillation(
    config: DistillationConfig,
    student: nn.Module,
    *,
    classes: Sequence[str],
    data: DataConfig,
    device: torch.device,
    channels_last: bool = False,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Distillation:
    """Load, check, merge and freeze the teacher, and join the student with adapters where features are matched.

    The teacher of a run folder or classifier file must have been trained on images of the same size and normalisation
    and on the same classes in the same order. Other files do not say this: their network's normalisation and the
    number of classes are compared.

    Args:
        config: With a teacher.
        student: The network to train.
        classes: Name of each output.
        data: The student's data.
        device: Where the run happens.
        channels_last: Whether images come in that memory format.
        autocast: Context of the teacher's forward pass.

    Returns:
        The parts. New adapters draw from the global random state.

    Raises:
        InputError: If the teacher cannot be read or does not fit the student.
    """
    check(
        config.teacher is not None, "a distillation.teacher", "None", "name a run folder or a checkpoint of the teacher"
    )
    file = find_checkpoint(Path(cast("str", config.teacher)), "branched")
    network, name = _load_teacher(file, config.teacher_model, classes, data)
    size = data.image_size
    example = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    report = merge(network, example=example)
    outputs = int(network(example[:1]).shape[1])
    check(
        outputs == len(classes),
        f"a teacher for the {len(classes)} classes of the data",
        f"{file} with {outputs} outputs",
        "use a teacher that was trained on the same classes",
    )
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    logger.info("teacher %s (%s) merged with a relative error of %.1e", name, file, report.relative_error)
    return Distillation(
        model=AdaptedStudent(student, network, config.reductions, size) if config.matches_features else student,
        teacher=Teacher(network, stages_at(network, config.reductions) if config.matches_features else (), autocast),
        record=TeacherRecord(
            file=str(file),
            model=name,
            sha256=_digest(file),
            parameters=report.parameters_after,
            merge_relative_error=report.relative_error,
        ),
    )


def _load_teacher(file: Path, model: str | None, classes: Sequence[str], data: DataConfig) -> tuple[nn.Module, str]:
    has_card = "widefield" in read_weights(file)[1]
    if not has_card and model is None:
        network = load_published(file)
        settings = cast("dict[str, Any]", network.pretrained_cfg)
        _check_normalisation(file, tuple(settings["mean"]), tuple(settings["std"]), data)
        return network, type(network).__name__
    network, card = load_classifier(file, model=model)
    _check_normalisation(file, card.data.mean, card.data.std, data)
    if has_card:
        check(
            card.data.image_size == data.image_size,
            f"a teacher for images of {data.image_size} pixels, as the student has them",
            f"{file} for {card.data.image_size}",
            f"use --data.image-size {card.data.image_size}, or another teacher",
        )
        differing = [pair for pair in zip(card.classes, classes, strict=False) if pair[0] != pair[1]]
        check(
            card.classes == tuple(classes),
            f"a teacher for the {len(classes)} classes of the data, in the same order",
            f"{file} with {len(card.classes)} classes"
            + (f", {differing[0][0]!r} where the data has {differing[0][1]!r}" if differing else ""),
            "use a teacher that was trained on the same classes",
        )
    return network, card.model.name


def _check_normalisation(file: Path, mean: tuple[float, ...], std: tuple[float, ...], data: DataConfig) -> None:
    check(
        (mean, std) == (data.mean, data.std),
        f"a teacher for images with mean {data.mean} and std {data.std}, as the student has them",
        f"{file} for mean {mean} and std {std}",
        "set --data.mean and --data.std to the teacher's",
    )
