"""Squeeze-and-excitation: "Squeeze-and-Excitation Networks" (Hu et al., CVPR 2018, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    """``x * sigmoid(up(ReLU(down(mean of x over the pixels))))``.

    Args:
        channels: C.
        hidden_channels: Width between the two 1x1 convolutions.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, C, H, W) -> (N, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, hidden_channels, 1, device=device, dtype=dtype)
        self.up = nn.Conv2d(hidden_channels, channels, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of each image."""
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
