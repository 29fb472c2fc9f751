"""A report: what was found out about several networks, as one self-contained page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from widefield._core.checks import check
from widefield._core.files import write_text_atomically
from widefield.analysis.report_image import map_image, photo_image
from widefield.analysis.report_page import compose

if TYPE_CHECKING:
    from PIL import Image

    from widefield.analysis.cost import Cost
    from widefield.analysis.explorer import ExploredLocations
    from widefield.analysis.kernel_weights import KernelWeights
    from widefield.analysis.latency import Latency
    from widefield.analysis.receptive_field import ReceptiveField
    from widefield.analysis.shape_bias import ShapeBias


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network of a report."""

    name: str
    weights: str
    """Where its weights are from, in a few words."""
    receptive_field: ReceptiveField
    shape_bias: ShapeBias | None = None
    kernels: tuple[KernelWeights, ...] = ()
    cost: Cost | None = None
    latency: Latency | None = None
    explored: tuple[ExploredLocations, ...] = ()
    """For each photo of the report, what reaches the locations of the same grid."""


@dataclass(frozen=True, kw_only=True)
class ExploredPhoto:
    """A photo of the explorer."""

    name: str
    picture: Image.Image
    """As the networks saw it, before normalisation."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page shows."""

    title: str
    subjects: tuple[Subject, ...]
    command: str
    """The command line that makes this page again."""
    date: str
    versions: Mapping[str, str]
    """Of the software, by its name."""
    images: tuple[str, ...]
    """Names of the images of the receptive fields."""
    photos: tuple[ExploredPhoto, ...] = ()


def check_report_path(path: Path) -> None:
    """Refuse a path that no page can be written to.

    Raises:
        InputError: If there is a file, or no folder for it.
    """
    check(not path.exists(), "a new file to write", f"{path}, which exists", "name another")
    check(path.parent.is_dir(), "a folder to write to", f"{path.parent}, which does not exist", "make it first")


def write_report(path: Path, report: Report) -> int:
    """Write the page.

    Args:
        path: Where; never overwritten.
        report: What it shows.

    Returns:
        Its size in bytes.

    Raises:
        InputError: If the path is taken, or the networks were not explored on the same grid and photos.
    """
    check_report_path(path)
    _check_subjects(report)
    page = compose(report, _data(report))
    write_text_atomically(path, page)
    return len(page.encode("utf-8"))


def _check_subjects(report: Report) -> None:
    check(bool(report.subjects), "at least one network", "none", "look into one first")
    thresholds = {subject.receptive_field.thresholds for subject in report.subjects}
    check(
        len(thresholds) == 1,
        "receptive fields with the same thresholds",
        " and ".join(sorted(map(str, thresholds))),
        "measure them with the same ones",
    )
    counts = [len(subject.explored) for subject in report.subjects]
    check(
        all(count == len(report.photos) for count in counts),
        f"every network explored on the {len(report.photos)} photos of the report",
        f"{counts} maps",
        "explore all photos with all networks",
    )
    shapes = {tuple(explored.levels.shape) for subject in report.subjects for explored in subject.explored}
    check(
        len(shapes) <= 1,
        "the same grid and size of maps for all networks and photos",
        " and ".join(sorted(map(str, shapes))),
        "explore them with the same grid and side",
    )


def _data(report: Report) -> str:
    """The figures of the page for programs: its JSON block."""
    values = {
        "date": report.date,
        "command": report.command,
        "versions": dict(report.versions),
        "models": [_figures(subject) for subject in report.subjects],
        "explorer": _explorer(report) if report.photos else None,
    }
    # Within a script element only "</" and "<!--" can do harm, and in JSON "<" occurs within strings alone.
    return json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _figures(subject: Subject) -> dict[str, Any]:
    return {
        "name": subject.name,
        "weights": subject.weights,
        "receptive_field": subject.receptive_field.summary(),
        "shape_bias": None if subject.shape_bias is None else asdict(subject.shape_bias),
        "kernels": [{**layer.to_plain(), "map": None} for layer in subject.kernels],
        "cost": None if subject.cost is None else {**subject.cost.to_plain(), "modules": None},
        "latency": None if subject.latency is None else asdict(subject.latency),
    }


def _explorer(report: Report) -> dict[str, Any]:
    first = report.subjects[0].explored[0]
    return {
        "rows": len(first.rows),
        "columns": len(first.columns),
        "map_size": list(first.levels.shape[-2:]),
        "models": [
            {
                "name": subject.name,
                "output_size": list(subject.explored[0].output_size),
                "rows": list(subject.explored[0].rows),
                "columns": list(subject.explored[0].columns),
            }
            for subject in report.subjects
        ],
        "photos": [
            {
                "name": photo.name,
                "source": photo_image(photo.picture),
                "atlases": [_atlas(subject.explored[index]) for subject in report.subjects],
                "half_shares": [
                    [[None if math.isnan(share) else round(share, 6) for share in row] for row in shares.tolist()]
                    for shares in (subject.explored[index].half_shares for subject in report.subjects)
                ],
            }
            for index, photo in enumerate(report.photos)
        ],
    }


def _atlas(explored: ExploredLocations) -> str:
    """All maps of a grid in one picture, each at the place of its location."""
    return map_image(explored.levels.transpose(1, 2).flatten(2).flatten(0, 1).contiguous(), is_overlay=True)
