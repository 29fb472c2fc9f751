"""``widefield report``: what is known of networks, on one page."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.progress import Progress
from torch import nn

from widefield._core.checks import check
from widefield._core.plain_text import visible
from widefield.analysis.categories import CategoryMapping
from widefield.analysis.cost import measure_cost
from widefield.analysis.cue_conflict import Stimuli, open_cue_conflict
from widefield.analysis.explorer import explore
from widefield.analysis.features import Features
from widefield.analysis.images import PhotoTensors
from widefield.analysis.kernel_weights import measure_kernel_weights
from widefield.analysis.large_kernels import large_kernels
from widefield.analysis.latency import measure_latency
from widefield.analysis.receptive_field_measurement import measure_receptive_field
from widefield.analysis.report import ExploredPhoto, Report, Subject, check_report_path, write_report
from widefield.analysis.shape_bias import count_classes, evaluate_shape_bias
from widefield.cli.arguments import parse
from widefield.cli.shape_bias import category_mapping, stimulus_transform
from widefield.cli.terminal import Terminal, progress_bar
from widefield.data import Photos, open_photos
from widefield.reparam import fold
from widefield.tasks.classification import OpenedModel, open_model

_COUNT = 4
_PICTURE_PX = 448
_LARGE = 7


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Look into networks and write what is found as one HTML page, which needs no network and can be sent around.

    It shows effective receptive fields side by side, an explorer (click a location of a photo, see what reaches it),
    the weights of large kernels and the cost of each network; shape bias if there are stimuli for it.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names of timm's or our models, torchvision:NAME, MODULE:FUNCTION, run folders or checkpoint files."""

    images: Path
    """Photos for the receptive fields: a file, a folder, a .zip or a .tar."""

    count: int | None = None
    """How many of them to average over, the first by name; up to 4 if not given."""

    size: int = 224
    """Side in pixels to which photos are resized, without a crop."""

    explore: int = 1
    """How many of the photos to explore."""

    grid: int = 9
    """Locations of the explorer on a side, at most; no more than the smallest feature map has."""

    stimuli: Path | None = None
    """Cue-conflict images for the shape bias: a folder, .zip or .tar with names like cat7-elephant1.png."""

    classes: Path | None = None
    """JSON file that says which classes belong to which of the 16 categories; built in for ImageNet-1K."""

    latency: bool = False
    """Whether to time the networks."""

    seconds: float = 5.0
    """Of timing for each network."""

    pretrained: bool = False
    """Fetch published weights, of timm's and torchvision's models; random if not."""

    seed: int = 0
    """Of random weights and of intervals."""

    title: str | None = None
    """Heading of the page."""

    date: str | None = None
    """What the page says of when it was made; today if not given."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The page; never overwritten."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(ReportArguments, words, command="report")
    check(bool(arguments.models), "at least one model", "none", "name them: widefield report MODEL ...")
    check(arguments.output.suffix == ".html", "a .html file to write", str(arguments.output), "change its ending")
    check_report_path(arguments.output)
    names = arguments.models
    check(len(set(names)) == len(names), "models that differ", ", ".join(names), "name each of them once")
    check(arguments.size > 0, "a size in pixels", f"{arguments.size}", "use --size 224")
    check(arguments.grid > 0, "a grid of at least one location", f"{arguments.grid}", "use --grid 9")
    photos = open_photos(arguments.images)
    count = min(_COUNT, len(photos)) if arguments.count is None else arguments.count
    check(
        0 <= arguments.explore <= count,
        f"0 to {count} photos to explore, of those that are averaged over",
        f"{arguments.explore}",
        "use --explore 1",
    )
    stimuli = None if arguments.stimuli is None else open_cue_conflict(arguments.stimuli)
    console = Terminal()
    with progress_bar(console) as progress:
        subjects = _look(arguments, photos, count, stimuli, progress)
    report = Report(
        title=arguments.title or f"Inside {', '.join(subject.name for subject in subjects)}",
        subjects=subjects,
        command=shlex.join(["widefield", "report", *words]),
        date=arguments.date or datetime.now(UTC).date().isoformat(),
        versions={name: importlib.metadata.version(name) for name in ("widefield", "torch", "timm")},
        images=tuple(Path(photos.name(index)).name for index in range(count)),
        photos=tuple(
            ExploredPhoto(
                name=Path(photos.name(index)).name, picture=photos.load(index).resize((_PICTURE_PX, _PICTURE_PX))
            )
            for index in range(arguments.explore)
        ),
    )
    size = write_report(arguments.output, report)
    console.print(f"wrote {visible(arguments.output)} ({size / 1e6:.1f} MB)", soft_wrap=True)


def _look(
    arguments: ReportArguments, photos: Photos, count: int, stimuli: Stimuli | None, progress: Progress
) -> tuple[Subject, ...]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = [_open(source, arguments, device) for source in arguments.models]
    uses = Counter(opened.name for opened in models)
    names = [
        opened.name if uses[opened.name] == 1 else source
        for opened, source in zip(models, arguments.models, strict=True)
    ]
    # What cannot be mapped is found out before anything takes time.
    mappings = [
        None if stimuli is None else _categories(opened, stimuli, arguments.classes, device) for opened in models
    ]
    size = (arguments.size, arguments.size)
    images = [PhotoTensors(photos, size, mean=opened.mean, std=opened.std, count=count) for opened in models]
    fields = [
        measure_receptive_field(
            opened.model,
            tensors,
            on_progress=_bar(progress, f"{name}: receptive field", count),
            name=name,
            weights=opened.weights,
        )
        for name, opened, tensors in zip(names, models, images, strict=True)
    ]
    side = min(arguments.grid, *(length for field in fields for length in field.output_size))
    subjects: list[Subject] = []
    for opened, field, mapping, tensors in zip(models, fields, mappings, images, strict=True):
        step = _bar(progress, f"{field.name}: explorer", arguments.explore * side**2)
        explored = tuple(
            explore(Features(opened.model), image.to(device), grid=(side, side), on_progress=step)
            for image in islice(tensors, arguments.explore)
        )
        bias, latency = None, None
        if stimuli is not None and mapping is not None:
            bias = evaluate_shape_bias(
                opened.model,
                stimuli,
                mapping,
                transform=stimulus_transform(opened),
                device=device,
                seed=arguments.seed,
                progress=_bar(progress, f"{field.name}: shape bias", len(stimuli.within(mapping.categories))),
            )
        shape = (1, len(opened.mean), *size)
        if arguments.latency:
            example = torch.randn(shape, device=device)
            latency = measure_latency(opened.model, example, budget_s=arguments.seconds)
        subjects.append(
            Subject(
                name=field.name,
                weights=opened.weights,
                receptive_field=field,
                shape_bias=bias,
                kernels=tuple(measure_kernel_weights(opened.model)) if large_kernels(opened.model, _LARGE) else (),
                cost=measure_cost(opened.model, shape),
                latency=latency,
                explored=explored,
            )
        )
    return tuple(subjects)


def _bar(progress: Progress, description: str, total: int) -> Callable[[int], None]:
    task = progress.add_task(description, total=total)
    return lambda done: progress.advance(task, done)


def _open(source: str, arguments: ReportArguments, device: torch.device) -> OpenedModel:
    opened = open_model(source, pretrained=arguments.pretrained, seed=arguments.seed)
    # The same function in fewer operations. A norm that follows in a plain sequence is left where the network has it.
    fold(opened.model, where=lambda _, module: type(module) is not nn.Sequential)
    opened.model.to(device)
    return opened


def _categories(opened: OpenedModel, stimuli: Stimuli, file: Path | None, device: torch.device) -> CategoryMapping:
    example = stimulus_transform(opened)(stimuli.load(0)).to(device)
    return category_mapping(opened, count_classes(opened.model, example), file)
