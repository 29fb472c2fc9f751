"""``widefield erf``: the effective receptive field of networks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from widefield._core.checks import check
from widefield._core.files import write_text_atomically
from widefield._core.plain_text import visible
from widefield.analysis.area import Area
from widefield.analysis.images import NoiseTensors, PhotoTensors
from widefield.analysis.receptive_field import THRESHOLDS, ReceptiveField, save_receptive_fields
from widefield.analysis.receptive_field_measurement import measure_receptive_field
from widefield.analysis.receptive_field_plot import draw_receptive_fields
from widefield.analysis.theoretical_field import TheoreticalField, theoretical_receptive_field
from widefield.cli.arguments import parse
from widefield.cli.terminal import Terminal, progress_bar
from widefield.data import Photos, open_photos
from widefield.reparam import fold
from widefield.tasks.classification import OpenedModel, load_classifier, open_model
from widefield.tasks.classification.card import make_classifier

_NOISE_IMAGES = 8
_OUTPUTS = (".png", ".json", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class ErfArguments:
    """Measure which pixels the output of a feature map is sensitive to, on average over images, and how far they reach.

    The ratio r(t) is the share of the image under the smallest centred square that holds more than t of the map. The
    figures of RepLKNet are of 50 ImageNet photos at 1024 px. Compare networks at one size and trained alike: the order
    can turn between 224 and 1024 px, and untrained networks can look wider than trained ones, which --also-initial True
    shows.
    """

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Names of timm's or our models, torchvision:NAME, MODULE:FUNCTION, run folders or checkpoint files."""

    images: Path | None = None
    """Photos: a file, a folder, a .zip or a .tar. Noise if not given, which is no substitute for them."""

    count: int | None = None
    """How many, the first by name; all photos, or 8 images of noise, if not given."""

    size: tuple[int, ...] = ()
    """Sides in pixels to which photos are resized, without a crop; what each network was made for if not given."""

    layer: str | None = None
    """Module whose output to look at, for instance stages.2; the last feature map if not given."""

    location: tuple[int, int] | None = None
    """Row and column in that output, from 0; its centre if not given."""

    thresholds: tuple[float, ...] = THRESHOLDS
    """Shares t of the area ratios."""

    around: Literal["image", "map"] = "image"
    """Centre of the squares: the middle of the image as published, or the map's own centre of gravity."""

    also_initial: bool = False
    """Whether trained networks are measured with random weights as well."""

    pretrained: bool = False
    """Fetch published weights, of timm's and torchvision's models; random if not."""

    seed: int = 0
    """Of random weights and of noise."""

    form: Literal["branched", "merged"] = "branched"
    """Which of a run folder's two files."""

    merge: bool = True
    """Whether branches are merged first: the same function, computed faster."""

    theory: bool = True
    """Whether to find the theoretical field too: every pixel that can reach the output, however little."""

    checkpointing: bool | None = None
    """Whether to save memory by computing blocks twice; if not said, above 512 x 512 pixels."""

    state: Path | None = None
    """Folder to keep unfinished fields in: after an interruption, the same command goes on."""

    output: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-o"])] = ()
    """Figure (.png), figures in numbers (.json), maps (.safetensors) or several of these; never overwritten."""


@dataclass(frozen=True, kw_only=True)
class _Measured:
    field: ReceptiveField
    theory: TheoreticalField | None


def run(words: Sequence[str]) -> None:
    """Run the command."""
    arguments = parse(ErfArguments, words, command="erf")
    _check(arguments)
    photos = None if arguments.images is None else open_photos(arguments.images)
    console = Terminal()
    with progress_bar(console, counts=True) as progress:
        measured = [
            _measure(opened, size, arguments, photos, progress, f"{index}-{opened.name}-{suffix}{size}")
            for index, source in enumerate(arguments.models)
            for opened, suffix in _networks(source, arguments)
            for size in arguments.size or (opened.image_size,)
        ]
    _print(console, measured, arguments)
    fields = [each.field for each in measured]
    for path in arguments.output:
        if path.suffix == ".png":
            draw_receptive_fields(path, fields)
        elif path.suffix == ".safetensors":
            save_receptive_fields(path, fields)
        else:
            write_text_atomically(path, json.dumps([_plain(each, arguments) for each in measured], indent=1) + "\n")
        console.print(f"wrote {visible(path)}", soft_wrap=True)


def _check(arguments: ErfArguments) -> None:
    check(bool(arguments.models), "at least one model", "none", "name them: widefield erf MODEL ...")
    check(bool(arguments.thresholds), "at least one threshold", "none", "use --thresholds 0.5")
    for threshold in arguments.thresholds:
        check(0 < threshold < 1, "thresholds between 0 and 1", f"{threshold:g}", "use shares such as 0.5")
    for size in arguments.size:
        check(size > 0, "sizes in pixels", f"{size}", "use --size 224")
    for path in arguments.output:
        check(path.suffix in _OUTPUTS, "a .png, .json or .safetensors file to write", str(path), "change its ending")
        check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
        check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")
    if arguments.state is not None:
        folder = arguments.state
        check(not folder.is_file(), "a folder to keep unfinished fields in", f"the file {folder}", "name a folder")
        folder.mkdir(parents=True, exist_ok=True)


def _networks(source: str, arguments: ErfArguments) -> Iterator[tuple[OpenedModel, str]]:
    """Yield the network, and the same with random weights if that is asked for."""
    path = Path(source).expanduser()
    trained = open_model(source, pretrained=arguments.pretrained, seed=arguments.seed, form=arguments.form)
    yield _merged(trained, arguments), ""
    if not arguments.also_initial:
        return
    if path.exists():
        _, card = load_classifier(path, arguments.form)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(arguments.seed)
            model = make_classifier(replace(card.model, weights=None, grad_checkpointing=False), len(card.classes))
        initial = replace(trained, model=model.eval(), weights=f"random, seed {arguments.seed}")
    else:
        check(
            arguments.pretrained and ":" not in source.removeprefix("torchvision:"),
            "trained weights to compare with initial ones",
            f"{source!r} with {trained.weights}",
            "add --pretrained True, name a run or a checkpoint, or leave out --also-initial",
        )
        initial = open_model(source, seed=arguments.seed)
    yield _merged(initial, arguments), "initial-"


def _merged(opened: OpenedModel, arguments: ErfArguments) -> OpenedModel:
    if arguments.merge:
        # A norm that follows in a plain sequence is left where the network has it.
        fold(opened.model, where=lambda _, module: type(module) is not nn.Sequential)
    return opened


def _measure(
    opened: OpenedModel, size: int, arguments: ErfArguments, photos: Photos | None, progress: Progress, key: str
) -> _Measured:
    model, pixels = opened.model, (size, size)
    # Transformers of timm are made for one size of images, and can be told another.
    if size != opened.image_size and callable(set_size := getattr(model, "set_input_size", None)):
        cast("Callable[..., object]", set_size)(img_size=pixels)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    images: PhotoTensors | NoiseTensors
    if photos is None:
        count = _NOISE_IMAGES if arguments.count is None else arguments.count
        images = NoiseTensors(count, pixels, channels=len(opened.mean), seed=arguments.seed)
    else:
        images = PhotoTensors(photos, pixels, mean=opened.mean, std=opened.std, count=arguments.count)
    bar = progress.add_task(f"{opened.name} at {size} px", total=len(images))
    name = re.sub(r"[^\w.-]+", "_", key)
    field = measure_receptive_field(
        model,
        cast("Iterable[Tensor]", images),
        layer=arguments.layer,
        location=arguments.location,
        thresholds=arguments.thresholds,
        around=arguments.around,
        checkpointing=arguments.checkpointing,
        state_file=None if arguments.state is None else arguments.state / f"{name}.safetensors",
        on_progress=lambda done: progress.advance(bar, done),
        name=opened.name,
        weights=opened.weights,
    )
    theory = None
    if arguments.theory:
        progress.update(bar, description=f"{opened.name}: theoretical field")
        theory = theoretical_receptive_field(
            model, pixels, layer=arguments.layer, location=arguments.location, channels=len(opened.mean)
        )
    return _Measured(field=field, theory=theory)


def _plain(each: _Measured, arguments: ErfArguments) -> dict[str, Any]:
    images = "noise" if arguments.images is None else str(arguments.images)
    return {
        **each.field.summary(),
        "source_of_images": images,
        "theoretical_field": None if each.theory is None else vars(each.theory),
    }


def _print(console: Console, measured: Sequence[_Measured], arguments: ErfArguments) -> None:
    table = Table(box=None, padding=(0, 1), pad_edge=False, title="effective receptive fields", title_justify="left")
    table.add_column("model")
    table.add_column("input", no_wrap=True)
    for threshold in arguments.thresholds:
        table.add_column(f"r({100 * threshold:g} %)", justify="right", no_wrap=True)
    table.add_column("diameter", justify="right", no_wrap=True)
    for each in measured:
        field = each.field
        size = f"{field.input_size[0]} px\n{field.images} images\nat {field.location[0]}, {field.location[1]}"
        diameter = "-" if math.isnan(field.effective_diameter_px) else f"{field.effective_diameter_px:.1f} px"
        reach = "" if each.theory is None else f"\n{_reach(each.theory)}"
        model = "\n".join(map(visible, (field.name, field.weights, field.layer)))
        table.add_row(model, size, *map(_told, field.ratios), f"{diameter}{reach}")
    console.print(table)
    for line in _notes([each.field for each in measured], arguments):
        console.print(line, soft_wrap=True)


def _notes(fields: Sequence[ReceptiveField], arguments: ErfArguments) -> Iterator[str]:
    yield (
        "r(t): share of the image under the smallest square around the location that holds more than t of the map, its "
        "95 % interval over images, and its side. diameter: four standard deviations of the map"
        + ("; below it the theoretical field." if arguments.theory else ".")
    )
    for field in fields:
        name = f"{visible(field.name)} at {field.input_size[0]} px"
        if field.skipped:
            yield f"{name}: left out {field.skipped} images whose gradients are not finite"
        stride = max(length / count for length, count in zip(field.input_size, field.output_size, strict=True))
        away = max(abs(a - b) for a, b in zip(field.gravity_px, field.centre_px, strict=True))
        if field.around == "image" and away > stride / 3:
            yield (
                f"{name}: the map lies {away:.0f} px off the middle that its squares are centred on, which widens "
                "them: --around map centres them on it"
            )
    if arguments.images is None:
        yield "These are fields on noise, not on photos: name some with --images for figures to compare."


def _told(area: Area) -> str:
    if area.ratio is None:
        return "none"
    lines = [f"{100 * area.ratio:.1f} %", f"{area.side_px} px"]
    if area.low is not None and area.high is not None:
        lines.insert(1, f"{100 * area.low:.1f}-{100 * area.high:.1f}")
    return "\n".join(lines)


def _reach(theory: TheoreticalField) -> str:
    height, width = theory.size_px
    if height is not None and width is not None:
        return f"of {height} px" if height == width else f"of {height} x {width} px"
    top, left, bottom, right = theory.box
    rows, columns = bottom - top + 1, right - left + 1
    return f"of all {rows} px" if rows == columns else f"of {rows} x {columns} px"
