"""Large kernel beside a small one, each with its BatchNorm: RepLKNet's guideline 3, section 3 (Ding et al., 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.nn.conv_norm import ConvNorm2d
from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.reparam import check_evaluation_mode, embed_kernel, folded_after, set_parameters


class ReparamConv2d(nn.Module):
    """``BN(depthwise K x K) + BN(depthwise k x k)``; merged, one depthwise K x K convolution with bias.

    Args:
        channels: C.
        kernel_size: K of the large kernel; odd.
        small_kernel_size: k of the parallel small kernel, odd and at most K; none for the large kernel alone.
        norm: Whether each branch ends in a BatchNorm, as published; without it, it is the bias-free convolution.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Raises:
        InputError: If a size is even, or the small kernel is larger than the large one.
    """

    merged: DepthwiseConv2d | None
    large: ConvNorm2d | None
    small: ConvNorm2d | None

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        small_kernel_size: int | None = 5,
        *,
        norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check(kernel_size % 2 == 1, "an odd kernel size", f"{kernel_size}", f"use {kernel_size | 1}")
        if small_kernel_size is not None:
            check(
                small_kernel_size % 2 == 1 and small_kernel_size <= kernel_size,
                f"a small kernel of odd size up to {kernel_size}",
                f"{small_kernel_size}",
                "use a smaller odd size, or None for the large kernel alone",
            )
        self.channels = channels
        self.kernel_size = kernel_size
        self.merged = None
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.large = ConvNorm2d(channels, channels, kernel_size, depthwise=True, norm=norm, **factory)
        self.small = None
        if small_kernel_size is not None:
            self.small = ConvNorm2d(channels, channels, small_kernel_size, depthwise=True, norm=norm, **factory)

    @property
    def is_merged(self) -> bool:
        """Whether the branches have been folded into one convolution."""
        return self.merged is not None

    def forward(self, x: Tensor) -> Tensor:
        """Add up the branches, or run the merged convolution."""
        if self.merged is not None:
            return self.merged(x)
        assert self.large is not None
        y = self.large(x)
        return y if self.small is None else y + self.small(x)

    def example_input(self) -> Tensor:
        """Return noise (1, C, 2 K, 2 K), seed 0, for a certificate of this layer alone."""
        like = next(self.parameters())
        size = (1, self.channels, 2 * self.kernel_size, 2 * self.kernel_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)

    def reparameterize(self) -> None:
        """Fold both branches and their norms into one kernel, in place.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        if self.large is None:
            return
        like, size = self.large.conv.weight, (self.kernel_size, self.kernel_size)
        weight, bias = folded_after(self.large.conv, self.large.norm)
        if self.small is not None:
            small_weight, small_bias = folded_after(self.small.conv, self.small.norm)
            weight, bias = weight + embed_kernel(small_weight, size), bias + small_bias
        merged = DepthwiseConv2d(self.channels, self.kernel_size, device=like.device, dtype=like.dtype)
        merged.weight.requires_grad_(like.requires_grad)
        set_parameters(merged, weight, bias)
        self.merged = merged.eval()
        self.large = self.small = None
