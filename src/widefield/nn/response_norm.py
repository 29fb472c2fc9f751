"""Global response normalization (Woo et al., "ConvNeXt V2", CVPR 2023, section 3), as UniRepLKNet uses it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class GlobalResponseNorm(nn.Module):
    """``(gamma N + 1) x + beta`` where N compares the energies of the channels of an image.

    N is the L2 norm of a channel over all pixels, divided by the mean of these norms over the channels. Gamma and beta,
    of shape (1, 1, 1, C) as published, start at 0: the layer starts as the identity.

    Args:
        channels: C.
        eps: Added to the mean of the norms.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, H, W, C) -> (N, H, W, C), any H and W.
    """

    beta: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels, device=device, dtype=dtype))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; without beta once that was pushed through the linear layer after this one."""
        # Unlike the root of a sum of squares, its gradient at 0 is 0.
        norm = cast("Tensor", torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True))  # pyright: ignore[reportUnknownMemberType]
        response = norm / (norm.mean(dim=-1, keepdim=True) + self.eps)
        # Under autocast the parameters are wider than x, which is the large tensor.
        y = x * (self.gamma * response + 1).to(x.dtype)
        return y if self.beta is None else y + self.beta.to(x.dtype)
