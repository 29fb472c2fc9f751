"""Convolution, BatchNorm and activation: the brick of RepLKNet, which merges to one convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.reparam import check_evaluation_mode, fold_after


class ConvNorm2d(nn.Module):
    """``activation(BatchNorm(conv(x)))`` with a bias-free, "same"-padded convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: K, or (K_h, K_w); odd.
        stride: Step in pixels.
        dilation: Distance between taps in pixels.
        depthwise: One kernel for each channel (then both channel counts are equal) instead of a dense convolution.
        norm: Whether there is a BatchNorm; without it the convolution, which has no bias, stands alone.
        activation: Class of the activation, or none.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    conv: nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        norm: bool = True,
        activation: type[nn.Module] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if depthwise:
            self.conv = DepthwiseConv2d(
                out_channels,
                kernel,
                stride=stride,
                dilation=dilation,
                bias=False,
                device=device,
                dtype=dtype,
            )
        else:
            self.conv = nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride=stride,
                padding=(dilation * (kernel[0] // 2), dilation * (kernel[1] // 2)),
                dilation=dilation,
                bias=False,
                device=device,
                dtype=dtype,
            )
        self.norm: nn.Module = nn.BatchNorm2d(out_channels, device=device, dtype=dtype) if norm else nn.Identity()
        self.activation = nn.Identity() if activation is None else activation()

    @property
    def is_merged(self) -> bool:
        """Whether the norm has been folded, or there never was one."""
        return isinstance(self.norm, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return self.activation(self.norm(self.conv(x)))

    def reparameterize(self) -> None:
        """Fold the norm into the convolution, in place.

        Raises:
            InputError: In training mode.
        """
        check_evaluation_mode(self)
        if not self.is_merged:
            fold_after(self.conv, self.norm)
            self.norm = nn.Identity().eval()
