from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from widefield import create_model
from widefield._core.errors import InputError
from widefield.analysis.images import NoiseTensors, PhotoTensors
from widefield.analysis.receptive_field import THRESHOLDS
from widefield.analysis.receptive_field_measurement import measure_receptive_field

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five drawn photos of different sizes."""
    root = tmp_path / "photos"
    root.mkdir()
    generator = np.random.default_rng(0)
    for index in range(5):
        coarse = generator.integers(0, 256, (4, 5 + index, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90 + 7 * index, 80), Image.Resampling.BILINEAR).save(root / f"{index}.png")
    return root


def published(model: nn.Module, last: nn.Module, photos: Path, size: int) -> np.ndarray:
    """The published procedure in plain words of torch, numpy and Pillow."""
    captured: list[Any] = []
    handle = last.register_forward_hook(lambda _, __, output: captured.append(output))
    maps = []
    for path in sorted(photos.iterdir()):
        resized = Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pixels = (np.asarray(resized, dtype=np.float32) / 255 - np.asarray(MEAN, np.float32)) / np.asarray(
            STD, np.float32
        )
        image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).requires_grad_()
        model(image)
        output = captured.pop()
        _, _, height, width = output.shape
        score = torch.relu(output[:, :, height // 2, width // 2]).sum()
        gradient = torch.autograd.grad(score, image)[0]
        maps.append(torch.relu(gradient).sum((0, 1)).numpy().astype(np.float64))
    handle.remove()
    return np.mean([one for one in maps if not np.isnan(one).any()], axis=0)


def published_area(average: np.ndarray, threshold: float) -> tuple[int, float] | None:
    values = np.log10(average + 1)
    values = values / values.max()
    height, width = values.shape
    for i in range(1, height // 2):
        top, left = height // 2 - i, width // 2 - i
        side = 2 * i + 1
        if values[top : top + side, left : left + side].sum() / values.sum() > threshold:
            return side, side * side / (height * width)
    return None


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer4"), ("replknet_nano", "stages.3")])
def test_it_is_the_published_procedure(name: str, layer: str, photos: Path) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Networks whose branches start at zero would show their stem alone.
            nn.init.uniform_(module.weight, 0.5, 1.5)
    average = published(model, model.get_submodule(layer), photos, 96)
    field = measure_receptive_field(model, PhotoTensors(photos, (96, 96), mean=MEAN, std=STD))
    assert field.layer == layer
    assert field.images == 5
    np.testing.assert_allclose(field.mean.numpy(), average, rtol=1e-6, atol=1e-6 * average.max())
    for threshold in THRESHOLDS:
        area = field.area(threshold)
        assert (area.side_px, area.ratio) == (published_area(average, threshold) or (None, None))


def test_photos_are_resized_and_not_cropped(photos: Path) -> None:
    tensors = PhotoTensors(photos, (16, 40), mean=MEAN, std=STD, count=2)
    assert len(tensors) == len(list(tensors)) == 2
    first = next(iter(tensors))
    expected = np.asarray(Image.open(photos / "0.png").resize((40, 16), Image.Resampling.BICUBIC), dtype=np.float64)
    pixels = first[0].permute(1, 2, 0).double().numpy() * np.asarray(STD) + np.asarray(MEAN)
    np.testing.assert_allclose(pixels, expected / 255, atol=1e-6)


def test_photos_that_are_not_there_or_cannot_be_read_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected a count of 1 to 5, the images there are, but got 6: ask for fewer"):
        PhotoTensors(photos, (8, 8), mean=MEAN, std=STD, count=6)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"Expected at least one image, but got .*empty' without any"):
        PhotoTensors(empty, (8, 8), mean=MEAN, std=STD)
    (photos / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2\.png"):
        measure_receptive_field(nn.Conv2d(3, 2, 3), PhotoTensors(photos, (8, 8), mean=MEAN, std=STD))


def test_noise_is_drawn_from_its_seed() -> None:
    first, second = list(NoiseTensors(2, (64, 64), seed=3)), list(NoiseTensors(1, (64, 64), seed=4))
    assert torch.equal(first[1], second[0])
    assert not torch.equal(first[0], first[1])
    assert abs(first[0].std().item() - 1) < 0.05
    with pytest.raises(InputError, match="Expected a count of 1 or more, but got 0: ask for at least one image"):
        NoiseTensors(0, (8, 8))
