"""A run from config to results: train, keep the best, merge with a certificate, evaluate both forms, write it down."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import nn

from widefield.__about__ import __version__
from widefield._core.checks import check
from widefield._core.errors import InputError, RunError
from widefield.checkpoints.files import load_weights
from widefield.data import ImageSource, Splits, evaluation_loader, open_splits, train_loader, write_images
from widefield.engine import (
    Extension,
    FitResult,
    Reporter,
    RunFolder,
    Task,
    Trainer,
    make_accelerator,
    seed_everything,
)
from widefield.engine.checkpointing import disk_errors
from widefield.reparam import MergeReport, merge
from widefield.tasks.classification.card import ClassifierCard, make_classifier, save_classifier, start_from
from widefield.tasks.classification.config import RunConfig
from widefield.tasks.classification.distillation import check_teacher_file, start_distillation
from widefield.tasks.classification.evaluation import Evaluation, evaluate
from widefield.tasks.classification.figures import draw_confusion, draw_curves
from widefield.tasks.classification.footprint import check_step_fits
from widefield.tasks.classification.origin import RunOrigin
from widefield.tasks.classification.skipped_images import SkippedImages
from widefield.tasks.classification.space import needed_bytes
from widefield.tasks.classification.sparse import SparsityExtension, first_masks
from widefield.tasks.classification.task import ClassificationTask
from widefield.tasks.distillation import DistillationTask, student_patterns, student_weights

_IMAGES = "images.csv.gz"
"""Part, class and name of every image of a run, beside its checkpoints."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The results of a run, as ``summary.json`` holds them. Accuracies are in percent."""

    model: str
    recipe: str
    split: str | None
    """The split that the scores below were measured on: "test" where the data has one, else "validation". None where
    there is neither, since all images trained: there are no scores then."""
    images: int
    """Images in that split."""
    top1: float | None
    """Of the kept weights, branched."""
    top5: float | None
    merged_top1: float | None
    merged_prediction_differences: int | None
    """Images of that split on which branched and merged network disagree."""
    merge_relative_error: float
    validation_top1: float | None
    """Of the kept weights: the score that they were chosen by. None where nothing was held back for validation: the
    weights of the last epoch were kept."""
    last_validation_top1: float | None
    """Of the weights after the last epoch."""
    best_epoch: int
    epochs: int
    parameters: int
    nonzero_parameters: int
    """Of them those that are not zero, biases and scales included."""
    merged_parameters: int
    seconds: float
    """From the first step to the last, validation included."""
    train_images: int
    skipped_images: int
    """Different images of all parts that were left out because they could not be decoded."""
    data: str
    device: str
    threads: int
    torch: str
    widefield: str


def train(
    config: RunConfig, path: Path, *, resume: bool = False, reporter: Reporter | None = None
) -> tuple[RunSummary, MergeReport] | None:
    """Train, merge and evaluate a classifier, and fill its run folder.

    Args:
        config: The run.
        path: Its folder; new or empty, unless `resume`.
        resume: Take up the run that lies there at its newest checkpoint.
        reporter: Told of progress.

    Returns:
        Summary and certificate on the main process, nothing on the others.

    Raises:
        InputError: If data, model, settings or folder cannot be used, another process is at the run, or settings or
            images are not those that it was begun with (see `origin.CHANGEABLE`); nothing has been written then.
        RunError: If the run had to stop (a loss that is not finite, a full disk).
    """
    with ExitStack() as stack:
        return _train(config, path, resume, reporter, stack)


def _train(
    config: RunConfig, path: Path, resume: bool, reporter: Reporter | None, stack: ExitStack
) -> tuple[RunSummary, MergeReport] | None:
    accelerator = make_accelerator(config.trainer)
    rank, world_size = accelerator.process_index, accelerator.num_processes
    splits = open_splits(config.data)
    loader = train_loader(
        splits.train, config.data, config.augmentation, seed=config.trainer.seed, rank=rank, world_size=world_size
    )
    validation = (
        None
        if splits.validation is None
        else evaluation_loader(splits.validation, config.data, rank=rank, world_size=world_size)
    )
    seed_everything(config.trainer.seed)
    classes = splits.train.classes
    # On a CPU the weights and their gradients share one memory.
    model = make_classifier(config.model, len(classes), copies=2 if accelerator.device.type == "cpu" else 1)
    check_image_size(model, config.data.image_size)
    check_step_fits(
        model,
        config.data.image_size,
        max(config.data.batch_size // world_size, 1),
        accelerator.device,
        is_low_precision=config.trainer.precision != "no",
        keeps_inputs=not config.model.grad_checkpointing,
    )
    if config.model.weights is not None:
        start_from(model, Path(config.model.weights))
    distillation = None
    if config.distillation.teacher is not None:
        if resume:
            check_teacher_file(config.distillation, path)
        distillation = start_distillation(
            config.distillation,
            model,
            classes=classes,
            data=config.data,
            device=accelerator.device,
            channels_last=config.trainer.channels_last,
            autocast=lambda: accelerator.autocast(),
        )
    trained = model if distillation is None else distillation.model
    # Drop path draws differently on each process, initial weights do not.
    seed_everything(config.trainer.seed, rank)
    origin = RunOrigin.of(config, splits, accelerator.device, world_size) if accelerator.is_main_process else None
    folder = _folder(config, path, resume, splits, trained, origin, stack)
    task: Task = ClassificationTask(validation, len(classes), config.augmentation.label_smoothing)
    if distillation is not None:
        distillation.check_same_teacher(folder)
        task = DistillationTask(task, distillation.teacher, config.distillation)
    loaders = {"training": loader} | ({} if validation is None else {"validation": validation})
    skipped_images = SkippedImages(loaders)
    extensions: list[Extension] = [skipped_images]
    if config.sparsity is not None:
        masks = first_masks(trained, config, splits.train, accelerator)
        extensions.append(SparsityExtension(config.sparsity, masks))
    trainer = Trainer(
        trained,
        task,
        loader,
        folder,
        extensions=extensions,
        trainer=replace(
            config.trainer,
            float32_modules=student_patterns(trained, config.trainer.float32_modules),
            monitored_modules=student_patterns(trained, config.trainer.monitored_modules),
        ),
        optimizer=config.optimizer,
        schedule=config.schedule,
        ema=config.ema,
        reporter=reporter,
        accelerator=accelerator,
        origin=None if origin is None else origin.record(),
    )
    result = trainer.fit(resume=resume)
    result = replace(result, best_weights=student_weights(trained, result.best_weights))
    for opened in loaders.values():
        opened.close()
    skipped = skipped_images.count()
    if not accelerator.is_main_process:
        return None
    try:
        return _finish(config, folder, splits, model, result, accelerator.device, skipped)
    except (OSError, SafetensorError) as error:
        # safetensors tells of a full disk in an error of its own.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RunError(
            f"Expected to write the results to {folder.path}, but got {reason}: "
            "free space there and finish with widefield train --resume (the trained weights are kept)."
        ) from error


def _folder(
    config: RunConfig,
    path: Path,
    resume: bool,
    splits: Splits,
    model: nn.Module,
    origin: RunOrigin | None,
    stack: ExitStack,
) -> RunFolder:
    """Return the run folder, locked, with the list of its images; `origin` is there on the main process."""
    wanted = RunFolder(path.absolute())
    names = wanted.checkpoints / _IMAGES
    images = sum(len(source) for source in splits.parts().values() if source is not None)
    is_fresh = not resume

    def compare(state: Mapping[str, Any] | None) -> None:
        nonlocal is_fresh
        assert origin is not None
        origin.check_same(wanted, names, state)
        is_fresh = state is None

    folder = RunFolder.create(
        path,
        resume,
        lambda state: needed_bytes(model, config, wanted, state, images),
        config.to_yaml(),
        compare=compare,
        stack=stack,
    )
    if origin is not None and (is_fresh or not names.is_file()):
        with disk_errors(names, folder.checkpoints):
            names.parent.mkdir(exist_ok=True)
            write_images(names, splits)
    return folder


def check_image_size(model: nn.Module, image_size: int) -> None:
    """Raise unless a network takes square images of a size.

    Raises:
        InputError: If its last feature map would be less than a pixel, or it refuses the size.
    """
    name = type(model).__name__
    info = cast("list[dict[str, Any]]", getattr(model, "feature_info", None) or [])
    reduction = max((int(entry["reduction"]) for entry in info), default=1)
    check(
        image_size >= reduction,
        f"an image size of at least {reduction} for {name}",
        f"{image_size}",
        f"raise --data.image-size to {reduction} or more",
    )
    try:
        with torch.device("meta"):
            copy.deepcopy(model).to("meta").eval()(torch.empty(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"an image size that {name} takes",
            f"{image_size} ({str(error).splitlines()[0]})",
            "change --data.image-size",
        ) from error


def _finish(
    config: RunConfig,
    folder: RunFolder,
    splits: Splits,
    model: nn.Module,
    result: FitResult,
    device: torch.device,
    skipped: int,
) -> tuple[RunSummary, MergeReport]:
    load_weights(model, result.best_weights, "the best checkpoint")
    model.eval()
    split, source = _scored(splits)
    card = ClassifierCard(
        model=replace(config.model, weights=None), data=config.data, classes=tuple(splits.train.classes), split=split
    )
    save_classifier(folder.model, model.state_dict(), card)
    branched, skipped_here = (None, 0) if source is None else _score(model, source, config, device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    nonzeros = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    report = merge(model, example=_example(splits.train if source is None else source, config).to(device))
    save_classifier(folder.merged, model.state_dict(), replace(card, form="merged"))
    merged = None if source is None else _score(model, source, config, device)[0]
    summary = RunSummary(
        model=config.model.name,
        recipe=config.recipe,
        split=split,
        images=0 if branched is None else branched.count,
        top1=None if branched is None else branched.top1,
        top5=None if branched is None else branched.top5,
        merged_top1=None if merged is None else merged.top1,
        merged_prediction_differences=(
            None if branched is None or merged is None else int((branched.predictions != merged.predictions).sum())
        ),
        merge_relative_error=report.relative_error,
        validation_top1=result.best.get("top1"),
        last_validation_top1=result.last.get("top1"),
        best_epoch=result.best_epoch,
        epochs=config.trainer.epochs,
        parameters=parameters,
        nonzero_parameters=nonzeros,
        merged_parameters=report.parameters_after,
        seconds=result.seconds,
        train_images=len(splits.train),
        skipped_images=skipped + (0 if splits.test is None else skipped_here),
        data=splits.description,
        device=str(device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        widefield=__version__,
    )
    draw_curves(folder.figure("curves.png"), result.history, result.best_epoch, f"{config.model.name}, {config.recipe}")
    if merged is not None:
        title = f"{split} split, {merged.count:,} images, {merged.top1:.2f} % right"
        draw_confusion(folder.figure("confusion_matrix.png"), merged.confusion, splits.train.classes, title)
    folder.write_json("merge.json", report.as_dict())
    folder.write_json("summary.json", asdict(summary))
    return summary, report


def _scored(splits: Splits) -> tuple[Literal["validation", "test"] | None, ImageSource | None]:
    """Return the split that the kept weights are scored on, if there is one."""
    if splits.test is not None:
        return "test", splits.test
    return (None, None) if splits.validation is None else ("validation", splits.validation)


def _score(model: nn.Module, source: ImageSource, config: RunConfig, device: torch.device) -> tuple[Evaluation, int]:
    """Return the scores, and how many images could not be decoded."""
    loader = evaluation_loader(source, config.data)
    scores = evaluate(model, loader, len(source.classes), device)
    loader.close()
    return scores, loader.num_skipped


def _example(source: ImageSource, config: RunConfig) -> torch.Tensor:
    """The first images of the split: the certificate is measured on what the network is for."""
    first = evaluation_loader(source, replace(config.data, batch_size=4, workers=0))
    return next(first.epoch(0)).images
