"""A large kernel as two stripes and a small square, each with its BatchNorm: SLaK (Liu et al., 2023), section 4."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.fx
from torch import Tensor, nn

from widefield._core.checks import check, check_name
from widefield.nn.conv_norm import ConvNorm2d
from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.ops import decomposed_conv2d
from widefield.ops.operands import not_scriptable
from widefield.reparam import check_evaluation_mode, embed_kernel, folded_after, set_parameters

# Its checks look at shapes: a symbolic trace keeps the call as one node.
torch.fx.wrap("decomposed_conv2d")

MergedForm = Literal["stripes", "cross"]
MERGED_FORMS = ("stripes", "cross")


@not_scriptable
class DecomposedConv2d(nn.Module):
    """``BN(depthwise M x N) + BN(depthwise N x M) + BN(depthwise N x N)``, the last only if N is smaller than M.

    Merged, either two stripes, one of which holds the small kernel, with one bias ("stripes": 2 M N numbers for each
    channel), or one cross-shaped M x M kernel with bias ("cross": M M numbers, one ordinary convolution for whatever
    runs it next).

    Args:
        channels: C.
        kernel_size: M, the length of the stripes; odd.
        small_kernel_size: N, their width and the size of the small kernel; odd.
        norm: Whether each branch ends in a BatchNorm, as published; without it, it is the bias-free convolution (the
            published code's ``bn=False``).
        merged_form: What `reparameterize` makes unless it is told otherwise; an attribute that may be changed.
        device: Where to put the parameters.
        dtype: Their type.

    Shape:
        (N, C, H, W) -> (N, C, H, W).

    Raises:
        InputError: If a size is even, or there is no such form.
    """

    tall: ConvNorm2d | None
    wide: ConvNorm2d | None
    small: ConvNorm2d | None
    merged: DepthwiseConv2d | None
    merged_tall: DepthwiseConv2d | None
    merged_wide: DepthwiseConv2d | None

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        small_kernel_size: int = 5,
        *,
        norm: bool = True,
        merged_form: MergedForm = "stripes",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check(kernel_size % 2 == 1, "an odd kernel size", f"{kernel_size}", f"use {kernel_size | 1}")
        is_odd = small_kernel_size % 2 == 1
        check(is_odd, "stripes of an odd width", f"{small_kernel_size}", f"use {small_kernel_size | 1}")
        check_name(merged_form, MERGED_FORMS, "merged form")
        self.channels = channels
        self.kernel_size = kernel_size
        self.small_kernel_size = small_kernel_size
        self.merged_form: MergedForm = merged_form
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        length, width = kernel_size, small_kernel_size
        self.tall = _branch(channels, (length, width), norm, factory)
        self.wide = _branch(channels, (width, length), norm, factory)
        has_small = width < length
        self.small = _branch(channels, (width, width), norm, factory) if has_small else None
        self.merged = self.merged_tall = self.merged_wide = None

    @property
    def is_merged(self) -> bool:
        """Whether the branches have been folded."""
        return self.tall is None

    def forward(self, x: Tensor) -> Tensor:
        """Add up the branches, or run the merged form."""
        if self.merged is not None:
            return self.merged(x)
        if self.merged_tall is not None and self.merged_wide is not None:
            tall, wide = self.merged_tall, self.merged_wide
            return decomposed_conv2d(x, tall.weight, wide.weight, None, tall.bias)
        assert self.tall is not None
        assert self.wide is not None
        y = self.tall(x) + self.wide(x)
        return y if self.small is None else y + self.small(x)

    def example_input(self) -> Tensor:
        """Return noise (1, C, 2 M, 2 M), seed 0, for a certificate of this layer alone."""
        like = next(self.parameters())
        size = (1, self.channels, 2 * self.kernel_size, 2 * self.kernel_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)

    def reparameterize(self, form: MergedForm | None = None) -> None:
        """Fold the branches and their norms, in place.

        Args:
            form: "stripes" or "cross"; `merged_form` if none is given.

        Raises:
            InputError: In training mode, if there is no such form, or if the layer has been merged to the other one.
        """
        check_evaluation_mode(self)
        form = self._form if form is None else form
        check_name(form, MERGED_FORMS, "merged form")
        if self.tall is None or self.wide is None:
            own = self._form
            check(form == own, f"a layer to merge to {form!r}", f"one merged to {own!r}", "merge a branched copy of it")
            return
        like = self.tall.conv.weight
        tall, bias = folded_after(self.tall.conv, self.tall.norm)
        wide, wide_bias = folded_after(self.wide.conv, self.wide.norm)
        bias = bias + wide_bias
        if self.kernel_size < self.small_kernel_size:
            tall, wide = wide, tall
        if self.small is not None:
            small, small_bias = folded_after(self.small.conv, self.small.norm)
            tall, bias = tall + embed_kernel(small, _size(tall)), bias + small_bias
        if form == "cross":
            size = tall.shape[2], wide.shape[3]
            self.merged = _convolution(embed_kernel(tall, size) + embed_kernel(wide, size), bias, like)
        else:
            self.merged_tall, self.merged_wide = _convolution(tall, bias, like), _convolution(wide, None, like)
        self.tall = self.wide = self.small = None

    @property
    def _form(self) -> MergedForm:
        if self.tall is not None:
            return self.merged_form
        return "stripes" if self.merged is None else "cross"


def _branch(channels: int, kernel_size: tuple[int, int], norm: bool, factory: dict[str, Any]) -> ConvNorm2d:
    return ConvNorm2d(channels, channels, kernel_size, depthwise=True, norm=norm, **factory)


def _size(kernel: Tensor) -> tuple[int, int]:
    return kernel.shape[2], kernel.shape[3]


def _convolution(weight: Tensor, bias: Tensor | None, like: Tensor) -> DepthwiseConv2d:
    layer = DepthwiseConv2d(
        weight.shape[0], _size(weight), bias=bias is not None, device=like.device, dtype=like.dtype
    ).eval()
    layer.weight.requires_grad_(like.requires_grad)
    if bias is None:
        layer.weight.data.copy_(weight)
    else:
        set_parameters(layer, weight, bias)
    return layer
