"""A report of networks that there are not: every figure in it is drawn."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from widefield.analysis.categories import CATEGORIES
from widefield.analysis.cost import measure_cost
from widefield.analysis.explorer import ExploredLocations, explore
from widefield.analysis.features import Features
from widefield.analysis.kernel_weights import measure_kernel_weights
from widefield.analysis.latency import Latency
from widefield.analysis.receptive_field import ReceptiveField
from widefield.analysis.report import ExploredPhoto, Report, Subject
from widefield.analysis.shape_bias import ShapeBias, shape_bias

SIZE, GRID = 64, 4
EVIL = "<script>alert('model')</script> & \"co\""


def hill(width: float, row: float, column: float) -> Tensor:
    """A Gaussian (SIZE, SIZE) of a width in pixels."""
    places = torch.arange(SIZE, dtype=torch.float64)
    return torch.exp(-((places[:, None] - row) ** 2 + (places - column) ** 2) / (2 * width**2))


def field(name: str, width: float) -> ReceptiveField:
    maps = torch.stack([(100 + 10 * index) * hill(width + index, SIZE / 2, SIZE / 2) for index in range(3)])
    return ReceptiveField(
        name=name,
        weights="drawn",
        layer="stages.3",
        location=(GRID // 2, GRID // 2),
        input_size=(SIZE, SIZE),
        output_size=(GRID, GRID),
        images=3,
        skipped=1,
        mean=maps.mean(0),
        standard_error=maps.std(0) / 3**0.5,
        group_sums=maps.float(),
    )


def explored(width: float, grid: int = GRID, output: int = GRID) -> ExploredLocations:
    """Maps that are hills around their locations."""
    step = SIZE / output
    hills = torch.stack(
        [hill(width, step * (row + 0.5), step * (column + 0.5)) for row in range(output) for column in range(output)]
    ).float()

    def layer(_: nn.Module, images: Tensor) -> Tensor:
        return torch.einsum("nchw,lhw->nl", images, hills).unflatten(1, (1, output, output))

    return explore(Features(nn.Identity(), layer), torch.ones(1, 3, SIZE, SIZE), grid=(grid, grid), side=32)


def bias(seed: int) -> ShapeBias:
    shapes = [CATEGORIES[index % 16] for index in range(64)]
    textures = [CATEGORIES[(index + 1 + index // 16) % 16] for index in range(64)]
    decisions = [
        (shape, texture, "knife")[(index * seed) % 3]
        for index, (shape, texture) in enumerate(zip(shapes, textures, strict=True))
    ]
    return replace(shape_bias(decisions, shapes, textures), equal_pairs=4)


def subject(name: str, width: float, *, photos: int = 1, is_full: bool = True) -> Subject:
    network = nn.Sequential(nn.Conv2d(3, 6, 13, padding=6), nn.Conv2d(6, 6, 9, padding=4, groups=6))
    latency = Latency(
        batch=1, p05_ms=9, p25_ms=9.5, median_ms=10, p75_ms=11, p95_ms=12, runs=5, threads=1, device="cpu"
    )
    return Subject(
        name=name,
        weights="drawn",
        receptive_field=field(name, width),
        shape_bias=bias(int(width)) if is_full else None,
        kernels=tuple(measure_kernel_weights(network)) if is_full else (),
        cost=measure_cost(network, (1, 3, SIZE, SIZE)) if is_full else None,
        latency=latency if is_full else None,
        explored=tuple(explored(width) for _ in range(photos)),
    )


def photo(name: str, colour: tuple[int, int, int]) -> ExploredPhoto:
    picture = Image.new("RGB", (SIZE, SIZE), colour)
    picture.paste((250, 240, 200), (10, 10, 30, 40))
    return ExploredPhoto(name=name, picture=picture)


def report(*subjects: Subject, photos: int = 1) -> Report:
    return Report(
        title="Drawn networks",
        subjects=subjects,
        command=f"widefield report {' '.join(one.name for one in subjects)} --images photos",
        date="2026-01-02",
        versions={"widefield": "0.1.0"},
        images=("a.png", "b.png", "c.png"),
        photos=tuple(photo(f"{index}.png", (40 + 60 * index, 90, 120)) for index in range(photos)),
    )
