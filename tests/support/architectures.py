"""Small networks of every kind that a published checkpoint may belong to, none of them a published variant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from support.random_statistics import randomise
from torch import Tensor

from widefield.checkpoints.layouts import Family, Layout, in_layout
from widefield.models.replknet import RepLKNet
from widefield.models.slak import SLaK
from widefield.models.unireplknet import UniRepLKNet
from widefield.nn.reparam_conv import ReparamConv2d
from widefield.reparam import fold

_CLASSES: dict[Family, Any] = {"replknet": RepLKNet, "slak": SLaK, "unireplknet": UniRepLKNet}
_SIZES: dict[str, Any] = {"channels": (8, 12, 16, 24), "depths": (1, 2, 3, 1), "num_classes": 11}


@dataclass(frozen=True)
class Architecture:
    """A network, and the name that it has in a test."""

    name: str
    family: Family
    settings: dict[str, Any] = field(default_factory=dict)

    def model(self, **changes: Any) -> Any:
        torch.manual_seed(0)
        return randomise(_CLASSES[self.family](**{**_SIZES, **self.settings, **changes}))

    def published(self, layout: Layout = "official") -> dict[str, Tensor]:
        return in_layout(self.model().state_dict(), self.family, layout)

    def published_merged(self, layout: Layout = "official") -> dict[str, Tensor]:
        """The state dict after the authors' merge, which leaves RepLKNet's other norms."""
        model = self.model()
        where = (lambda _, module: isinstance(module, ReparamConv2d)) if self.family == "replknet" else None
        fold(model, where=where)
        return in_layout(model.state_dict(), self.family, layout)

    def __str__(self) -> str:
        return self.name


ARCHITECTURES = (
    Architecture("replknet", "replknet", {"kernel_sizes": (9, 7, 7, 5), "small_kernel_size": 3}),
    Architecture(
        "replknet-wide",
        "replknet",
        {
            "channels": (10, 20, 31, 50),
            "kernel_sizes": (7, 7, 7, 3),
            "small_kernel_size": 5,
            "hidden_ratio": 1.3,
            "ffn_ratio": 2.5,
            "in_chans": 1,
        },
    ),
    Architecture(
        "replknet-features",
        "replknet",
        {"kernel_sizes": (9, 9, 9, 5), "small_kernel_size": None, "feature_norms": True, "hidden_ratio": 1.5},
    ),
    Architecture("slak", "slak", {"kernel_sizes": (51, 13, 5, 7)}),
    Architecture("slak-dense", "slak", {"decomposed": False, "kernel_sizes": (13, 11, 9, 7), "small_kernel_size": 3}),
    Architecture(
        "slak-plain",
        "slak",
        {
            "decomposed": False,
            "kernel_sizes": (7, 7, 7, 7),
            "small_kernel_size": None,
            "layer_scale": None,
            "ffn_ratio": 3.0,
            "feature_norms": True,
        },
    ),
    Architecture("unireplknet", "unireplknet", {"kernel_sizes": ((3,), (13, 3), (31, 5, 7), (17,)), "in_chans": 4}),
    Architecture(
        "unireplknet-without",
        "unireplknet",
        {"kernel_sizes": ((0,), (9, 11), (15, 0, 29), (0,)), "layer_scale": None, "feature_norms": True},
    ),
)
