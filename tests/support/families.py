"""One small network of each family, for tests that hold for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor

import widefield.models  # noqa: F401 - registers the models

CHANNELS = (16, 24, 32, 40)


@dataclass(frozen=True)
class Family:
    """A variant, and the options that make it small."""

    variant: str
    options: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] = CHANNELS
    features: int = CHANNELS[-1]
    """Channels of what is pooled."""
    blocks: int = 5
    """Residual branches that can be dropped, each counted once."""

    def make(self, **options: Any) -> Any:
        torch.manual_seed(0)
        return timm.create_model(self.variant, **{**self.options, **options})

    def __str__(self) -> str:
        return self.variant


_SMALL = {"channels": CHANNELS, "depths": (1, 1, 2, 1)}

FAMILIES = (
    Family("replknet_nano", channels=(32, 64, 128, 256), features=256),
    Family("slak_a", _SMALL),
    Family("pelk_a", _SMALL),
    Family("unireplknet_a", {**_SMALL, "kernel_sizes": (3, 13, (13, 3), 13)}),
    Family("convnext_lk_t", _SMALL),
    Family("mobilenetv2_lk", channels=(24, 32, 96, 320), features=1280),
)


def images(*size: int, **options: Any) -> Tensor:
    """Noise (2, 3, 64, 64), or of another size."""
    return torch.randn(size or (2, 3, 64, 64), generator=torch.Generator().manual_seed(1), **options)
