"""The time of RepLKNet-31B's effective receptive field at 512 px, on our dispatcher and on PyTorch's convolutions.

    python benchmarks/receptive_field_time.py benchmarks/results/cpu_receptive_field_time.json --images kodak18.zip

Merged, float32, 8 photos, in one process: first ours, then every depthwise convolution forced to ``aten`` on contiguous
maps, on the same photos. One photo each beforehand is not counted. Memory is the peak of the resident set of the whole
process during our turn (Linux only).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from widefield import merge
from widefield.analysis import PhotoTensors, ReceptiveField, measure_receptive_field
from widefield.bench.environment import environment
from widefield.nn import DepthwiseConv2d
from widefield.ops import use_backend
from widefield.tasks.classification import open_model

SIZE, COUNT = 512, 8


def measured(model: torch.nn.Module, photos: PhotoTensors) -> tuple[ReceptiveField, float]:
    measure_receptive_field(model, list(photos)[:1])
    start = time.perf_counter()
    field = measure_receptive_field(model, photos)
    return field, time.perf_counter() - start


def peak_bytes() -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("record", type=Path, help="JSON file to write")
parser.add_argument("--images", type=Path, required=True, help="photos: a folder or an archive")
options = parser.parse_args()

opened = open_model("replknet_31b")
merge(opened.model)
photos = PhotoTensors(options.images, (SIZE, SIZE), mean=opened.mean, std=opened.std, count=COUNT)
ours, ours_s = measured(opened.model, photos)
peak = peak_bytes()
for layer in opened.model.modules():
    if isinstance(layer, DepthwiseConv2d):
        layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
with use_backend("aten"):
    aten, aten_s = measured(opened.model, photos)
difference = ((ours.mean - aten.mean).abs().max() / aten.mean.max()).item()
record = {
    "environment": asdict(environment("cpu")),
    "images": COUNT,
    "size_px": SIZE,
    "ours_s": ours_s,
    "aten_nchw_s": aten_s,
    "ratio": aten_s / ours_s,
    "peak_gb": peak / 1e9,
    "relative_difference": difference,
}
options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
print(json.dumps(record, indent=1))
