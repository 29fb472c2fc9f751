"""Stimuli that are drawn, and a classifier that answers to each of them what it was told."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn


def draw_stimuli(root: Path, names: Sequence[str], side: int = 4) -> dict[str, int]:
    """Write one flat grey image for each name (without its ending), and return their grey values."""
    greys = {name: index + 1 for index, name in enumerate(names)}
    for name, grey in greys.items():
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (side, side), (grey,) * 3).save(path)
    return greys


def zip_folder(root: Path) -> Path:
    """Pack the images of a folder, and return the archive."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(root).as_posix())
    return path


def grey_pixel(image: Image.Image) -> Tensor:
    """A transform that keeps the grey value of an image: (3, 1, 1)."""
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return torch.tensor(pixel, dtype=torch.float32).reshape(3, 1, 1)


class ByGrey(nn.Module):
    """Classifies an image by its grey value.

    Args:
        answers: Grey value to the logits of the answer.
    """

    def __init__(self, answers: Mapping[int, Sequence[float]]) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm2d(3)
        self.answers = answers
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        assert not any(module.training for module in self.modules())
        self.batches.append(len(images))
        return torch.tensor([list(self.answers[int(grey)]) for grey in images[:, 0, 0, 0].tolist()])
