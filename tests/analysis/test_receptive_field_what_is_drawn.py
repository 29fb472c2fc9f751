from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from widefield._core.errors import InputError
from widefield.analysis.images import NoiseTensors
from widefield.analysis.receptive_field import ReceptiveField
from widefield.analysis.receptive_field_measurement import measure_receptive_field
from widefield.analysis.receptive_field_plot import draw_receptive_fields


def field(kernel_size: int, size: int = 48) -> ReceptiveField:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, kernel_size, padding=kernel_size // 2)
    return measure_receptive_field(model, NoiseTensors(2, (size, size)), name=f"K = {kernel_size}", weights="random")


def test_fields_of_several_sizes_are_drawn_on_one_page(tmp_path: Path) -> None:
    path = tmp_path / "fields.png"
    fields = [field(3), field(9), field(31), field(9, 96), field(31, 97)]
    draw_receptive_fields(path, fields)
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) > 400
    assert pixels.std() > 20
    draw_receptive_fields(tmp_path / "linear.png", fields, scale="linear")
    assert (tmp_path / "linear.png").read_bytes() != path.read_bytes()


def test_a_map_of_nothing_is_drawn_too(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 2, 3, padding=1)
    with torch.no_grad():
        model.bias.fill_(-100)  # pyright: ignore[reportOptionalMemberAccess]
    empty = measure_receptive_field(model, NoiseTensors(1, (16, 16)))
    assert empty.ratios[0].ratio is None
    draw_receptive_fields(tmp_path / "empty.png", [empty])
    assert (tmp_path / "empty.png").exists()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fields.png"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"Expected a new file to write, but got .*fields\.png, which exists: name"):
        draw_receptive_fields(path, [field(3)])
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match="Expected 1 to 12 receptive fields, but got 0: draw fewer"):
        draw_receptive_fields(tmp_path / "none.png", [])
