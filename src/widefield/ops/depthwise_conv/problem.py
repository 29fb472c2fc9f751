"""The static description of one depthwise convolution: all that a backend may base its choice on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from widefield.ops.functions import is_mapped

Layout = Literal["contiguous", "channels_last"]


def layout_of(x: Tensor) -> Layout:
    """Return the memory format in which `x` (N, C, H, W) lies; what is neither, or both, counts as contiguous.

    So does a sample within `vmap`, which cannot be asked.
    """
    if x.is_contiguous() or is_mapped(x):
        return "contiguous"
    return "channels_last" if x.is_contiguous(memory_format=torch.channels_last) else "contiguous"


def memory_format(layout: Layout) -> torch.memory_format:
    """Return torch's own object for a layout."""
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Shape, type and place of a depthwise convolution.

    `layout` is that of the tensor a map reads as an image: the input for ``forward`` and ``grad_weight``, the output's
    gradient for ``grad_input``.
    """

    batch: int
    channels: int
    height: int
    width: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    dtype: torch.dtype = torch.float32
    device_type: str = "cpu"
    layout: Layout = "contiguous"

    @property
    def output_size(self) -> tuple[int, int]:
        """(P, Q), height and width of the output."""
        sizes = zip((self.height, self.width), self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        return height, width

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one map, padding included: N C P Q K_h K_w."""
        height, width = self.output_size
        return self.batch * self.channels * height * width * self.kernel_size[0] * self.kernel_size[1]

    def __str__(self) -> str:
        kernel = "x".join(map(str, self.kernel_size))
        rest = [
            f"{name} {'x'.join(map(str, value))}"
            for name, value, plain in (("stride", self.stride, (1, 1)), ("dilation", self.dilation, (1, 1)))
            if value != plain
        ]
        words = [
            f"depthwise {kernel} on N{self.batch} C{self.channels} {self.height}x{self.width}",
            *rest,
            str(self.dtype).removeprefix("torch."),
            self.layout,
            self.device_type,
        ]
        return ", ".join(words)
