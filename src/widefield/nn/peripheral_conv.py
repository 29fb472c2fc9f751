"""Depthwise convolution whose kernel shares parameters over cells, fine in the centre and coarse outside: PeLK."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn

from widefield._core.checks import check, check_name
from widefield.nn.conv_norm import ConvNorm2d
from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.ops import SharingGrid, depthwise_conv2d, peripheral_conv2d, peripheral_kernel
from widefield.ops.operands import not_scriptable
from widefield.reparam import check_evaluation_mode, embed_kernel, folded_after, set_parameters
from widefield.reparam.algebra import as_double

# Their checks look at shapes: a symbolic trace keeps each call as one node.
torch.fx.wrap("peripheral_conv2d")
torch.fx.wrap("constant_of_position")
torch.fx.wrap("map_of_position")

Position = Literal["none", "kernel", "border"]
POSITIONS: tuple[Position, ...] = get_args(Position)


@not_scriptable
class PeripheralConv2d(nn.Module):
    """``peripheral K x K (x + h) + depthwise k x k (x)``; merged, one depthwise K x K convolution with bias.

    The embedding h (C, K, K) tells each tap where it is (PeLK, section 4.2). It is an argument of ``forward``, since
    all blocks of a stage share one. Two readings of equation 3 are offered:

    * "kernel", as printed: h is added to everything under the window, the padding included. This adds the constant
      ``<w, h>`` to each channel, wherever the window lies.
    * "border": h is added to real pixels only, so that what it adds depends on how much of the window lies outside the
      image. This is the convolution of an image of ones with the kernel ``w h``. Merged, that kernel is kept beside the
      other one, which is exact for images of every size.

    PeLK's normalisation is unpublished. SLaK has a BatchNorm after each branch, which in training subtracts the
    constant of "kernel" again, so that h would never get a gradient. Hence there is none by default, and the LayerNorm
    of the block, which keeps differences between channels, comes next. Without norms the layer has a bias of its own.

    Args:
        channels: C.
        kernel_size: K; odd.
        grid: Cells of both axes, K taps in all; without it, `SharingGrid.exponential` with `centre_radius`.
        centre_radius: Single taps on each side of the central one, if no grid is given.
        small_kernel_size: k of the parallel small kernel, odd and at most K; none for the large kernel alone.
        norm: Whether each branch ends in a BatchNorm, as in SLaK.
        position: How ``forward`` takes the embedding; "none" if it takes none.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Raises:
        InputError: If a size is even, the small kernel is larger than the large one, the grid has another number of
            taps, or there is no such position.

    Source: PeLK (Chen et al., CVPR 2024), equations 1 to 3.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    norm: nn.Module | None
    small: ConvNorm2d | DepthwiseConv2d | None
    merged: DepthwiseConv2d | None
    merged_border: DepthwiseConv2d | None

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        grid: SharingGrid | None = None,
        centre_radius: int = 2,
        small_kernel_size: int | None = 5,
        norm: bool = False,
        position: Position = "none",
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
        check_name(position, POSITIONS, "position")
        grid = SharingGrid.exponential(kernel_size, centre_radius) if grid is None else grid
        check(
            grid.kernel_size == kernel_size,
            f"a sharing grid of {kernel_size} taps",
            f"{grid.kernel_size} ({', '.join(map(str, grid.sizes))})",
            "give cells that add up to the kernel size",
        )
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.channels = channels
        self.kernel_size = kernel_size
        self.grid = grid
        self.position: Position = position
        self.weight = nn.Parameter(torch.empty(channels, 1, grid.parameters, grid.parameters, **factory))
        self.bias = None if norm else nn.Parameter(torch.zeros(channels, **factory))
        self.norm = nn.BatchNorm2d(channels, **factory) if norm else nn.Identity()
        self.small = None
        if small_kernel_size is not None and norm:
            self.small = ConvNorm2d(channels, channels, small_kernel_size, depthwise=True, **factory)
        elif small_kernel_size is not None:
            self.small = DepthwiseConv2d(channels, small_kernel_size, bias=False, **factory)
        self.merged = None
        self.merged_border = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the cells as means, each over its taps, of a dense kernel from N(0, 0.02^2); the bias is 0.

        PeLK's first values are unpublished. Cells drawn all alike would give the outermost, which count up to 17 x 17
        times, most of the output.
        """
        if self.weight is None:
            return
        nn.init.trunc_normal_(self.weight, std=0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        taps = torch.tensor(self.grid.sizes, dtype=self.weight.dtype, device=self.weight.device)
        with torch.no_grad():
            self.weight.mul_(torch.outer(taps, taps).rsqrt())

    @property
    def is_merged(self) -> bool:
        """Whether the branches have been folded into one convolution."""
        return self.merged is not None

    def extra_repr(self) -> str:
        """Return sizes and position for ``repr``."""
        cells = f"{self.grid.parameters}x{self.grid.parameters} cells"
        return f"{self.channels}, kernel_size={self.kernel_size} ({cells}), position={self.position!r}"

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Add up the branches, or run the merged convolution.

        Args:
            x: Images (N, C, H, W).
            embedding: h (C, K, K), if there is one. A layer into which one has been folded looks at no other.

        Raises:
            InputError: If there is an embedding of another shape, or one although the position is "none", or as
                `widefield.ops.peripheral_conv2d`.
        """
        self._check_takes(embedding)
        is_bordered = self.position == "border"
        if self.merged is not None:
            y = self.merged(x)
            if self.merged_border is not None:
                return y + self.merged_border(torch.ones_like(x[:1]))
            if embedding is None or self.weight is None:
                return y
            if is_bordered:
                return y + map_of_position(x, self.weight, embedding, self.grid)
            return y + constant_of_position(self.weight, embedding, self.grid).to(y.dtype).reshape(-1, 1, 1)
        assert self.weight is not None
        assert self.norm is not None
        constant = None if is_bordered else embedding
        y = peripheral_conv2d(x, self.weight, self.bias, rows=self.grid, embedding=constant)
        if embedding is not None and is_bordered:
            y = y + map_of_position(x, self.weight, embedding, self.grid)
        y = self.norm(y)
        return y if self.small is None else y + self.small(x)

    def _check_takes(self, embedding: Tensor | None) -> None:
        check(
            embedding is None or self.position != "none",
            "no embedding for a layer without positions",
            "one",
            "make the layer with position='kernel' or 'border'",
        )

    def example_input(self) -> Tensor:
        """Return noise (1, C, 2 K, 2 K), seed 0, for a certificate of this layer alone."""
        like = next(self.parameters())
        size = (1, self.channels, 2 * self.kernel_size, 2 * self.kernel_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)

    def reparameterize(self, embedding: Tensor | None = None) -> None:
        """Fold branches, norms and, if it is given, the embedding into one dense kernel, in place.

        Without the embedding, a layer that takes one keeps its cells, scaled by the norm: ``forward`` needs them for
        the one that it is given, and a later call can fold it.

        Args:
            embedding: h (C, K, K).

        Raises:
            InputError: In training mode, or if there is an embedding of another shape, or one although the position is
                "none".
        """
        check_evaluation_mode(self)
        self._check_takes(embedding)
        like = self.weight
        if like is None or (self.merged is not None and embedding is None):
            return
        cells, weight, bias = self._folded(like)
        border: DepthwiseConv2d | None = None
        if embedding is not None and self.position == "kernel":
            bias = bias + constant_of_position(cells, as_double(embedding), self.grid)
        if embedding is not None and self.position == "border":
            border = self._dense(like, kernel_of_position(cells, as_double(embedding), self.grid), None)
        self.merged = self._dense(like, weight, bias)
        self.merged_border = border
        is_whole = self.position == "none" or embedding is not None
        self.weight = None if is_whole else nn.Parameter(cells.to(like.device, like.dtype), like.requires_grad)
        self.bias = self.norm = self.small = None

    def _folded(self, like: nn.Parameter) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cells that an embedding meets, and kernel and bias of everything else, in float64."""
        if self.merged is not None:
            assert self.merged.bias is not None
            return as_double(like), as_double(self.merged.weight), as_double(self.merged.bias)
        assert self.norm is not None
        large = nn.Conv2d(self.channels, self.channels, self.grid.parameters, groups=self.channels, device="meta")
        large.weight, large.bias = like, self.bias
        cells, bias = folded_after(large, self.norm)
        weight = peripheral_kernel(cells, self.grid)
        if self.small is not None:
            branch = self.small
            parts = (branch.conv, branch.norm) if isinstance(branch, ConvNorm2d) else (branch, nn.Identity())
            small_weight, small_bias = folded_after(*parts)
            weight = weight + embed_kernel(small_weight, (self.kernel_size, self.kernel_size))
            bias = bias + small_bias
        return cells, weight, bias

    def _dense(self, like: nn.Parameter, weight: Tensor, bias: Tensor | None) -> DepthwiseConv2d:
        factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        dense = DepthwiseConv2d(self.channels, self.kernel_size, bias=bias is not None, **factory)
        dense.requires_grad_(like.requires_grad)
        if bias is None:
            dense.weight = nn.Parameter(weight.to(**factory), like.requires_grad)
        else:
            set_parameters(dense, weight, bias)
        return dense.eval()


def kernel_of_position(cells: Tensor, embedding: Tensor, grid: SharingGrid) -> Tensor:
    """Return ``w h``, the kernel (C, 1, K, K) that convolves an image of ones to what h adds to real pixels.

    Args:
        cells: Free parameters (C, 1, P, P).
        embedding: h (C, K, K).
        grid: Cells of both axes.

    Raises:
        InputError: If the embedding has another shape.
    """
    wanted = (cells.shape[0], grid.kernel_size, grid.kernel_size)
    check(
        tuple(embedding.shape) == wanted,
        f"an embedding of shape {wanted}",
        f"shape {tuple(embedding.shape)}",
        "give one number for each tap of each channel",
    )
    return peripheral_kernel(cells, grid) * embedding.unsqueeze(1)


def constant_of_position(cells: Tensor, embedding: Tensor, grid: SharingGrid) -> Tensor:
    """Return ``<w, h>`` of each channel, (C,), in float32 at least: what h adds to everything under the window."""
    wide = torch.promote_types(cells.dtype, torch.float32)
    return kernel_of_position(cells.to(wide), embedding.to(wide), grid).sum((1, 2, 3))


def map_of_position(x: Tensor, cells: Tensor, embedding: Tensor, grid: SharingGrid) -> Tensor:
    """Return what h adds to the convolution of `x` (N, C, H, W) if it is added to real pixels only, (1, C, H, W)."""
    return depthwise_conv2d(torch.ones_like(x[:1]), kernel_of_position(cells, embedding, grid))
