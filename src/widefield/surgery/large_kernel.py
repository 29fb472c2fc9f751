"""K x K kernels as linear maps of fewer or of overlapping parameters, each able to hold a small kernel at the start.

Without a norm between them, the branches of a re-parameterized convolution add up to one kernel, which is computed
before the convolution: training costs one convolution, and the gradient of each branch is that of the branch alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
import torch.fx
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.ops import (
    SharingGrid,
    cross_kernel,
    decomposed_conv2d,
    depthwise_conv2d,
    peripheral_conv2d,
    peripheral_kernel,
)
from widefield.reparam import embed_kernel

# They look at shapes: a symbolic trace keeps the calls as one node each.
torch.fx.wrap("cross_kernel")
torch.fx.wrap("decomposed_conv2d")
torch.fx.wrap("depthwise_conv2d")
torch.fx.wrap("embed_kernel")
torch.fx.wrap("peripheral_conv2d")
torch.fx.wrap("peripheral_kernel")
torch.fx.wrap("spread_taps")

Pair = tuple[int, int]


def spread_taps(weight: Tensor, dilation: Pair) -> Tensor:
    """Return the undilated kernel (..., d_h (k_h - 1) + 1, d_w (k_w - 1) + 1) that does what the dilated one does."""
    if dilation == (1, 1):
        return weight
    spans = [gap * (size - 1) + 1 for gap, size in zip(dilation, weight.shape[-2:], strict=True)]
    taps = weight.new_zeros(*weight.shape[:-2], *spans)
    taps[..., :: dilation[0], :: dilation[1]] = weight
    return taps


class LargeKernel(nn.Module, ABC):
    """A kernel (C_out, C_in / groups, K, K) that depends linearly on the parameters of this module.

    Args:
        weight: The small kernel (C_out, C_in / groups, k_h, k_w) that it is at first, in the centre of zeros.
        dilation: Distance between the taps of the small kernel.
        kernel_size: K.
    """

    def __init__(self, weight: Tensor, dilation: Pair, kernel_size: int) -> None:
        super().__init__()
        self.small_size: Pair = (weight.shape[2], weight.shape[3])
        self.small_dilation = dilation
        self.kernel_size = kernel_size

    @abstractmethod
    def forward(self) -> Tensor:
        """Return the kernel (C_out, C_in / groups, K, K)."""

    @abstractmethod
    def holding(self, weight: Tensor) -> dict[str, Tensor]:
        """Return values of all parameters with which the kernel is `weight`, of the small size, amid zeros."""

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the depthwise convolution of (N, C, H, W) with the kernel: stride 1, "same" padding."""
        return depthwise_conv2d(x, self(), bias)

    def _hold(self, weight: Tensor) -> None:
        with torch.no_grad():
            for name, value in self.holding(weight).items():
                self.get_parameter(name).copy_(value)

    @staticmethod
    def _zeros(like: Tensor, *size: int) -> nn.Parameter:
        zeros = like.detach().new_zeros(*like.shape[:2], *size)
        return nn.Parameter(zeros, requires_grad=like.requires_grad)


class SummedKernel(LargeKernel):
    """A dense K x K kernel and, in its centre, dilated small ones: RepLKNet's and UniRepLKNet's branches without norms.

    Args:
        weight: The small kernel at first.
        dilation: Its dilation.
        kernel_size: K.
        has_small: Whether the small kernel stays a branch of its own, the first; else it becomes part of the dense one.
        branches: Further branches (kernel size, dilation), zero at first; those like the small kernel are left out.
    """

    def __init__(
        self,
        weight: Tensor,
        dilation: Pair,
        kernel_size: int,
        *,
        has_small: bool = True,
        branches: Sequence[Pair] = (),
    ) -> None:
        super().__init__(weight, dilation, kernel_size)
        self.has_small = has_small
        own = [(self.small_size, dilation)] if has_small else []
        others = [((size, size), (gap, gap)) for size, gap in branches]
        forms = [*own, *(form for form in others if form not in own)]
        self.dilations = tuple(gaps for _, gaps in forms)
        self.large = self._zeros(weight, kernel_size, kernel_size)
        self.branches = nn.ParameterList([self._zeros(weight, *size) for size, _ in forms])
        self._hold(weight)

    def forward(self) -> Tensor:
        """Return the sum of all branches."""
        kernel, size = self.large, (self.kernel_size, self.kernel_size)
        for branch, gaps in zip(self.branches, self.dilations, strict=True):
            kernel = kernel + embed_kernel(spread_taps(branch, gaps), size)
        return kernel

    def holding(self, weight: Tensor) -> dict[str, Tensor]:
        """Put `weight` into its branch, or into the centre of the dense kernel."""
        values = {name: torch.zeros_like(parameter) for name, parameter in self.named_parameters()}
        if self.has_small:
            return {**values, "branches.0": weight}
        size = (self.kernel_size, self.kernel_size)
        return {**values, "large": embed_kernel(spread_taps(weight, self.small_dilation), size)}


class DecomposedKernel(LargeKernel):
    """SLaK's stripes K x N and N x K and the square N x N in their crossing, without norms.

    Args:
        weight: The small kernel at first, depthwise; it lies in the square.
        dilation: Its dilation.
        kernel_size: K.
        stripe_width: N, odd, at least the span of the small kernel and at most K.

    Raises:
        InputError: If N is even, too small or too large.
    """

    def __init__(self, weight: Tensor, dilation: Pair, kernel_size: int, *, stripe_width: int | None = None) -> None:
        super().__init__(weight, dilation, kernel_size)
        span = max(_spans(weight, dilation))
        width = min(max(span, 5), kernel_size) if stripe_width is None else stripe_width
        check(
            width % 2 == 1 and span <= width <= kernel_size,
            f"an odd stripe width from {span}, the small kernel's span, to {kernel_size}",
            f"{width}",
            "use a width between them",
        )
        self.stripe_width = width
        self.tall = self._zeros(weight, kernel_size, width)
        self.wide = self._zeros(weight, width, kernel_size)
        self.small = self._zeros(weight, width, width)
        self._hold(weight)

    def forward(self) -> Tensor:
        """Return the cross-shaped kernel."""
        return cross_kernel(self.tall, self.wide, self.small)

    def holding(self, weight: Tensor) -> dict[str, Tensor]:
        """Put `weight` into the square."""
        square = embed_kernel(spread_taps(weight, self.small_dilation), (self.stripe_width, self.stripe_width))
        return {"tall": torch.zeros_like(self.tall), "wide": torch.zeros_like(self.wide), "small": square}

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with the stripes one by one, or with the cross, whichever is predicted to be faster."""
        return decomposed_conv2d(x, self.tall, self.wide, self.small, bias)


class PeripheralKernel(LargeKernel):
    """PeLK's kernel: single taps in the centre, and outwards cells of taps that share a parameter.

    Args:
        weight: The small kernel at first, depthwise; it lies in the centre.
        dilation: Its dilation.
        kernel_size: K.
        centre_radius: Single taps on each side of the central one, enough to hold the small kernel.

    Raises:
        InputError: If the radius is smaller than the small kernel's.
    """

    def __init__(self, weight: Tensor, dilation: Pair, kernel_size: int, *, centre_radius: int | None = None) -> None:
        super().__init__(weight, dilation, kernel_size)
        least = max(_spans(weight, dilation)) // 2
        radius = max(least, 2) if centre_radius is None else centre_radius
        check(
            radius >= least,
            f"a centre radius of at least {least}, the small kernel's",
            f"{radius}",
            "raise it, so that every tap of the small kernel has a parameter of its own",
        )
        self.grid = SharingGrid.exponential(kernel_size, radius)
        self.cells = self._zeros(weight, self.grid.parameters, self.grid.parameters)
        self._hold(weight)

    def forward(self) -> Tensor:
        """Return the kernel with every cell spread over its taps."""
        return peripheral_kernel(self.cells, self.grid)

    def holding(self, weight: Tensor) -> dict[str, Tensor]:
        """Put `weight` into the cells of single taps."""
        count = self.grid.parameters
        return {"cells": embed_kernel(spread_taps(weight, self.small_dilation), (count, count))}

    def convolve(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve in the fastest form for the shape."""
        return peripheral_conv2d(x, self.cells, bias, rows=self.grid)


def _spans(weight: Tensor, dilation: Pair) -> Pair:
    height, width = (gap * (size - 1) + 1 for gap, size in zip(dilation, weight.shape[2:], strict=True))
    return cast("Pair", (height, width))
