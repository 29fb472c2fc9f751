"""Receptive fields against a plain restatement of the published procedure, on photos.

    python benchmarks/receptive_field_procedure.py benchmarks/results/receptive_field_procedure.json --images PLACE

For each network (random weights of seed 0; `--models` for others), the largest difference between our mean map and the
restatement's over its largest value, and both area ratios. The restatement knows torch, numpy and Pillow only: bicubic
resize without a crop, the last feature map before the final norm, the sum over channels of its positive values at the
centre, the positive gradient with respect to the image, summed over its channels, averaged over images.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from widefield.analysis.images import PhotoTensors
from widefield.analysis.receptive_field import THRESHOLDS
from widefield.analysis.receptive_field_measurement import measure_receptive_field
from widefield.bench.environment import environment
from widefield.data import Photos, open_photos
from widefield.tasks.classification import OpenedModel, open_model

LAYERS = {"resnet50": "layer4", "replknet_31b": "stages.3"}
LIMIT = 1e-6


def restated(opened: OpenedModel, last: nn.Module, photos: Photos, count: int, size: int) -> np.ndarray:
    """Return the mean map (H, W)."""
    captured: list[Tensor] = []
    handle = last.register_forward_hook(lambda _, __, output: captured.append(output))
    total = np.zeros((size, size))
    used = 0
    for index in range(count):
        photo = photos.load(index).resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(photo, dtype=np.float32) / 255
        pixels = (pixels - np.asarray(opened.mean, np.float32)) / np.asarray(opened.std, np.float32)
        image = torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).requires_grad_()
        opened.model(image)
        output = captured.pop()
        score = torch.relu(output[:, :, output.shape[2] // 2, output.shape[3] // 2]).sum()
        (gradient,) = torch.autograd.grad(score, image)
        contribution = torch.relu(gradient).sum((0, 1)).numpy()
        if not np.isnan(contribution).any():
            total += contribution
            used += 1
    handle.remove()
    return total / used


def restated_ratio(mean: np.ndarray, threshold: float) -> float | None:
    values = np.log10(mean + 1)
    values /= values.max()
    size = len(values)
    for i in range(1, size // 2):
        square = values[size // 2 - i : size // 2 + i + 1, size // 2 - i : size // 2 + i + 1]
        if square.sum() / values.sum() > threshold:
            return square.size / values.size
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", required=True)
    parser.add_argument("--models", nargs="+", default=list(LAYERS))
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    arguments = parser.parse_args()
    if arguments.file.exists():
        parser.error(f"Expected a new file to write, but got {arguments.file}, which exists: name another.")
    photos = open_photos(arguments.images)
    size = arguments.size
    rows = []
    for name in arguments.models:
        opened = open_model(name)
        opened.model.requires_grad_(False)
        images = PhotoTensors(photos, (size, size), mean=opened.mean, std=opened.std, count=arguments.count)
        start = time.perf_counter()
        field = measure_receptive_field(opened.model, images)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        last = opened.model.get_submodule(LAYERS.get(name, field.layer))
        expected = restated(opened, last, photos, arguments.count, size)
        difference = float(np.abs(field.mean.numpy() - expected).max() / expected.max())
        ratios = {
            threshold: (field.area(threshold).ratio, restated_ratio(expected, threshold)) for threshold in THRESHOLDS
        }
        row = {
            "model": name,
            "weights": opened.weights,
            "layer": field.layer,
            "size_px": size,
            "images": field.images,
            "skipped": field.skipped,
            "relative_difference": difference,
            "area_ratios": {
                str(threshold): {"ours": pair[0], "restated": pair[1]} for threshold, pair in ratios.items()
            },
            "is_equal": difference <= LIMIT and all(ours == theirs for ours, theirs in ratios.values()),
            "seconds_per_image": seconds / arguments.count,
            "peak_bytes": peak,
        }
        rows.append(row)
        print(f"{name}: {difference:.1e} {'equal' if row['is_equal'] else 'DIFFERENT'}, peak {peak / 1e9:.1f} GB")
    record = {"kind": "receptive_field_procedure", "environment": asdict(environment("cpu")), "rows": rows}
    arguments.file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
