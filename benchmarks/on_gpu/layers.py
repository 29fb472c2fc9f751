"""The layers that the session measures, N = 64 unless said, and their tiny stand-ins for a rehearsal."""

from __future__ import annotations

import torch

from widefield.bench.cases import Layer
from widefield.ops.depthwise_conv.problem import Problem

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def _layer(name: str, channels: int, height: int, width: int, kernel_h: int, kernel_w: int = 0) -> Layer:
    kernel_size = (kernel_h, kernel_w or kernel_h)
    return Layer(name=name, channels=channels, height=height, width=width, kernel_size=kernel_size, source="")


# In the order of their worth, should the time run out.
LAYERS = (
    (64, _layer("RepLKNet-31B 224 stage 1", 128, 56, 56, 31)),
    (64, _layer("RepLKNet-31B 224 stage 2", 256, 28, 28, 29)),
    (64, _layer("RepLKNet-31B 224 stage 3", 512, 14, 14, 27)),
    (64, _layer("RepLKNet-31B 224 stage 4", 1024, 7, 7, 13)),
    (64, _layer("SLaK-T 224 stage 1 Mx5", 124, 56, 56, 51, 5)),
    (64, _layer("SLaK-T 224 stage 1 5xM", 124, 56, 56, 5, 51)),
    (64, _layer("PeLK-B-101 224 stage 1", 62, 56, 56, 101)),
    (64, _layer("PeLK-B-101 224 stage 2", 124, 28, 28, 69)),
    (64, _layer("UniRepLKNet-S 224 stage 2", 192, 28, 28, 13)),
    (64, _layer("UniRepLKNet-S 224 stage 3", 384, 14, 14, 13)),
    (64, _layer("UniRepLKNet-S 224 stage 4", 768, 7, 7, 13)),
    (64, _layer("ConvNeXt-B 224 stage 1", 128, 56, 56, 7)),
    (64, _layer("ConvNeXt-B 224 stage 2", 256, 28, 28, 7)),
    (64, _layer("RepLKNet-31B 384 stage 1", 128, 96, 96, 31)),
    (64, _layer("RepLKNet-31B 384 stage 2", 256, 48, 48, 29)),
    (64, _layer("RepLKNet-31B 384 stage 3", 512, 24, 24, 27)),
    (64, _layer("RepLKNet-31B 384 stage 4", 1024, 12, 12, 13)),
    (16, _layer("dense prediction 128x128", 128, 128, 128, 31)),
    (16, _layer("dense prediction 64x64", 256, 64, 64, 29)),
    (64, _layer("SLaK-T 224 stage 2 Mx5", 249, 28, 28, 49, 5)),
    (64, _layer("SLaK-T 224 stage 2 5xM", 249, 28, 28, 5, 49)),
    (64, _layer("SLaK-T 224 stage 3 Mx5", 499, 14, 14, 47, 5)),
    (64, _layer("SLaK-T 224 stage 3 5xM", 499, 14, 14, 5, 47)),
    (64, _layer("SLaK-T 224 stage 1 5x5", 124, 56, 56, 5)),
    (64, _layer("PeLK-B-101 384 stage 1", 62, 96, 96, 101)),
    (64, _layer("UniRepLKNet-S 384 stage 2", 192, 48, 48, 13)),
    (1, _layer("RepLKNet-31B 224 stage 1, batch 1", 128, 56, 56, 31)),
    (8, _layer("RepLKNet-31B 224 stage 1, batch 8", 128, 56, 56, 31)),
)

TINY = ((2, _layer("tiny square", 2, 8, 8, 5)), (1, _layer("tiny stripe", 2, 9, 10, 7, 3)))


def problems(dtype: torch.dtype, device: str, is_tiny: bool) -> list[tuple[str, Problem]]:
    """Return the layers by name, as problems."""
    return [(layer.name, layer.problem(batch, dtype, device)) for batch, layer in (TINY if is_tiny else LAYERS)]
