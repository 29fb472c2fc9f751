"""Depthwise convolution as a layer: `torch.nn.Conv2d` with ``groups=C``, run by our operator."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor, nn

from widefield.ops import depthwise_conv2d
from widefield.ops.operands import not_scriptable

# Its checks look at shapes: a symbolic trace keeps the call as one node.
torch.fx.wrap("depthwise_conv2d")


@not_scriptable
class DepthwiseConv2d(nn.Conv2d):
    """One "same"-padded kernel for each channel, on the fastest backend for the shape.

    Parameters, initialisation and state-dict keys are those of `torch.nn.Conv2d`, and every tool that looks for one
    finds one.

    Args:
        channels: C.
        kernel_size: K, or (K_h, K_w); odd.
        stride: Step in pixels.
        dilation: Distance between taps in pixels.
        bias: Whether to add a constant to each channel.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).

    Raises:
        InputError: In ``forward``, as `widefield.ops.depthwise_conv2d`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        super().__init__(  # pyright: ignore[reportUnknownMemberType] - torch leaves device and dtype untyped
            channels,
            channels,
            kernel,
            stride=stride,
            padding=(dilation * (kernel[0] - 1) // 2, dilation * (kernel[1] - 1) // 2),
            dilation=dilation,
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Convolve."""
        stride, dilation = (self.stride[0], self.stride[1]), (self.dilation[0], self.dilation[1])
        return depthwise_conv2d(input, self.weight, self.bias, stride=stride, padding="same", dilation=dilation)
