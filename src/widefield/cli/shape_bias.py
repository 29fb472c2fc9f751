"""``widefield shape-bias``: whether classifiers go by shape or by texture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from widefield._core.checks import check
from widefield._core.plain_text import visible
from widefield.analysis.categories import CategoryMapping, imagenet_mapping, read_mapping
from widefield.analysis.cue_conflict import Stimuli, open_cue_conflict, open_shapes
from widefield.analysis.shape_bias import (
    CueDecisions,
    CueReport,
    ShapeAccuracy,
    Transform,
    count_classes,
    evaluate_shape_bias,
    evaluate_shapes,
    save_reports,
)
from widefield.analysis.shape_bias_plot import draw_shape_bias
from widefield.analysis.shape_bias_reference import HUMANS, NETWORKS
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal, progress_bar
from widefield.data import DataConfig, evaluation_transform
from widefield.tasks.classification import OpenedModel, open_model

_OUTPUTS: dict[str, Callable[[Path, Sequence[CueReport]], None]] = {".png": draw_shape_bias, ".json": save_reports}


@dataclass(frozen=True, kw_only=True)
class ShapeBiasArguments:
    """Ask classifiers about images whose shape and texture contradict each other, and count which of the two they name.

    The published images are in github.com/rgeirhos/texture-vs-shape, stimuli/style-transfer-preprocessed-512.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names of timm's or our models, torchvision:NAME, MODULE:FUNCTION, run folders or checkpoint files."""

    stimuli: Path
    """Cue-conflict images: a folder, .zip or .tar with names like cat7-elephant1.png."""

    edges: Path | None = None
    """Edge drawings, to measure accuracy: names like cat7.png."""

    silhouettes: Path | None = None
    """Silhouettes, to measure accuracy: names like cat7.png."""

    classes: Path | None = None
    """JSON file that says which classes belong to which of the 16 categories; built in for ImageNet-1K."""

    pretrained: bool = False
    """Fetch published weights, of timm's and torchvision's models; random if not."""

    batch_size: int = 32
    """Images in a batch."""

    seed: int = 0
    """Of random weights and of the bootstrap."""

    output: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-o"])] = ()
    """Figure (.png), counts (.json) or both; never overwritten."""


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(ShapeBiasArguments, words, command="shape-bias")
    check(bool(arguments.models), "at least one model", "none", "name them: widefield shape-bias MODEL ...")
    for path in arguments.output:
        check(path.suffix in _OUTPUTS, "a .png or .json file to write", str(path), "change its ending")
        check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
        check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")
    conflicts = open_cue_conflict(arguments.stimuli)
    edges = None if arguments.edges is None else open_shapes(arguments.edges)
    silhouettes = None if arguments.silhouettes is None else open_shapes(arguments.silhouettes)
    console = Terminal()
    with progress_bar(console) as progress:
        reports = [_ask(source, arguments, conflicts, edges, silhouettes, progress) for source in arguments.models]
    _print(console, reports)
    for path in arguments.output:
        _OUTPUTS[path.suffix](path, reports)
        console.print(f"wrote {visible(path)}", soft_wrap=True)


def _ask(
    source: str,
    arguments: ShapeBiasArguments,
    conflicts: Stimuli,
    edges: Stimuli | None,
    silhouettes: Stimuli | None,
    progress: Progress,
) -> CueReport:
    opened = open_model(source, pretrained=arguments.pretrained, seed=arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = opened.model.to(device)
    transform = stimulus_transform(opened)
    outputs = count_classes(model, transform(conflicts.load(0)).to(device))
    mapping = category_mapping(opened, outputs, arguments.classes)
    sets = [each.within(mapping.categories) for each in (conflicts, edges, silhouettes) if each is not None]
    bar = progress.add_task(opened.name, total=sum(map(len, sets)))

    def accuracy(stimuli: Stimuli | None) -> ShapeAccuracy | None:
        if stimuli is None:
            return None
        return evaluate_shapes(
            model,
            stimuli,
            mapping,
            transform=transform,
            batch_size=arguments.batch_size,
            device=device,
            progress=lambda images: progress.advance(bar, images),
        )

    bias = evaluate_shape_bias(
        model,
        conflicts,
        mapping,
        transform=transform,
        batch_size=arguments.batch_size,
        device=device,
        seed=arguments.seed,
        progress=lambda images: progress.advance(bar, images),
    )
    return CueReport(
        name=opened.name,
        weights=opened.weights,
        bias=bias,
        edges=accuracy(edges),
        silhouettes=accuracy(silhouettes),
    )


def stimulus_transform(opened: OpenedModel) -> Transform:
    """Resize to the model's own size, without cutting: a cue at the border counts as much as one in the middle."""
    return evaluation_transform(
        DataConfig(
            image_size=opened.image_size,
            crop_fraction=1.0,
            interpolation="bilinear" if opened.interpolation == "bilinear" else "bicubic",
            mean=cast("tuple[float, float, float]", opened.mean),
            std=cast("tuple[float, float, float]", opened.std),
        )
    )


def category_mapping(opened: OpenedModel, outputs: int, file: Path | None) -> CategoryMapping:
    """Return the mapping of a file, or without one ImageNet's for a network of 1000 outputs.

    Raises:
        InputError: If it does not fit.
    """
    if file is not None:
        return read_mapping(file, outputs, opened.classes)
    check(
        outputs == 1000,
        "the 1000 classes of ImageNet-1K, or a mapping of other classes",
        f"{opened.name} with {outputs}",
        "name a JSON file with --classes that says which of them belong to which category",
    )
    return imagenet_mapping()


def _print(console: Console, reports: Sequence[CueReport]) -> None:
    console.print("shape bias: the share of shape among decisions for shape or texture, in %", soft_wrap=True)
    table = Table()
    table.add_column("model", overflow="fold")
    for heading in ("bias", "95 % interval", "mean of categories", "shape right", "texture right"):
        table.add_column(heading, justify="right")
    for report in reports:
        overall = report.bias.overall
        table.add_row(
            visible(report.name),
            _percent(overall.shape_fraction),
            "-" if overall.interval is None else " to ".join(map(_percent, overall.interval)),
            _percent(report.bias.category_mean),
            _percent(overall.shape_accuracy),
            _percent(overall.texture_accuracy),
        )
    console.print(table)
    console.print("for each category of the shape, with the numbers of decisions for shape + texture", soft_wrap=True)
    table = Table()
    table.add_column("shape")
    for report in reports:
        table.add_column(visible(report.name), justify="right", overflow="fold")
    for category in sorted({category for report in reports for category in report.bias.by_shape}):
        table.add_row(visible(category), *(_decisions(report.bias.by_shape.get(category)) for report in reports))
    console.print(table)
    for report in reports:
        lines = "\n  ".join((visible(f"{report.name} ({report.weights})"), *_notes(report)))
        console.print(lines, soft_wrap=True)
    for published in (HUMANS, NETWORKS[0]):
        share = _percent(published.shape_fraction)
        console.print(
            f"published, all 16 categories: {published.name} {share} % ({published.source})",
            soft_wrap=True,
        )


def _notes(report: CueReport) -> list[str]:
    bias = report.bias
    notes = [f"{bias.overall.images} images with a conflict"]
    if bias.equal_pairs:
        notes.append(f"{bias.equal_pairs} without one left out")
    if bias.uncovered:
        notes.append(f"{bias.uncovered} left out because it has no class for one of their cues")
    for kind, told in (("edges", report.edges), ("silhouettes", report.silhouettes)):
        if told is not None:
            left_out = f" ({told.uncovered} without a class left out)" if told.uncovered else ""
            notes.append(f"{_percent(told.accuracy)} % of {told.images} {kind} recognised{left_out}")
    named = bias.overall.shape_accuracy + bias.overall.texture_accuracy
    if named <= bias.chance:
        notes.append(
            f"one of the two cues was named in {_percent(named)} % of images, no more than guessing would "
            f"({_percent(bias.chance)} %): this shape bias says nothing"
        )
    return notes


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _decisions(counted: CueDecisions | None) -> str:
    if counted is None:
        return "-"
    return f"{_percent(counted.shape_fraction)} ({counted.shape_decisions} + {counted.texture_decisions})"
