"""Where the large kernels of a network are: plain convolutions, and modules of branches that add up to one kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

Pair = tuple[int, int]

# What changes neither the place nor the channel of a number, and is affine in evaluation mode.
_NEUTRAL = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.Identity, nn.Dropout, nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True, kw_only=True)
class LargeKernel:
    """A layer with a large kernel."""

    name: str
    """Of the module; empty where it is the whole network."""
    module: nn.Module
    """A convolution, or a module that holds nothing but depthwise convolutions and norms."""
    kernel_size: Pair
    """Rows and columns that it spans, gaps of dilation included; of branches, those of the largest."""
    is_depthwise: bool
    """Whether each channel has one kernel of its own."""


def large_kernels(model: nn.Module, min_size: int) -> list[LargeKernel]:
    """Find the layers whose kernels span at least `min_size` pixels on their longer side.

    A module in which there are only depthwise convolutions of stride 1 and norms counts as one layer, with all its
    branches. The sizes are read from the attribute ``kernel_size``, which layers that hold their parameters in another
    shape have as well.

    Args:
        model: Any module.
        min_size: Pixels.

    Returns:
        The outermost of such layers, in the order of the model.
    """
    return [layer for layer in _layers(model, "") if max(layer.kernel_size) >= min_size]


def parts(layer: LargeKernel, min_size: int) -> list[LargeKernel]:
    """Find such layers within one that turned out to be no single kernel."""
    return [
        part
        for name, child in layer.module.named_children()
        for part in _layers(child, f"{layer.name}.{name}" if layer.name else name)
        if max(part.kernel_size) >= min_size
    ]


def spacing(value: Any) -> Pair:
    """Return a setting of a convolution, one number or two, as two."""
    return (value, value) if isinstance(value, int) else cast("Pair", tuple(value))


def _layers(module: nn.Module, name: str) -> Iterator[LargeKernel]:
    is_conv = isinstance(module, nn.Conv2d)
    size = _largest_span([module] if is_conv else module.modules())
    if is_conv or (size != (0, 0) and _adds_up_to_one_kernel(module)):
        is_depthwise = not is_conv or _is_depthwise(module)
        yield LargeKernel(name=name, module=module, kernel_size=size, is_depthwise=is_depthwise)
        return
    for child_name, child in module.named_children():
        yield from _layers(child, f"{name}.{child_name}" if name else child_name)


def _adds_up_to_one_kernel(module: nn.Module) -> bool:
    children = list(module.children())
    if not children or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    # One convolution after the other has a larger kernel than either.
    is_chain = isinstance(module, nn.Sequential) and sum(_largest_span(c.modules()) != (0, 0) for c in children) > 1
    return not is_chain and all(map(_is_part_of_a_kernel, children))


def _is_part_of_a_kernel(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return _is_depthwise(module) and spacing(module.stride) == (1, 1)
    children = list(module.children())
    return all(map(_is_part_of_a_kernel, children)) if children else isinstance(module, _NEUTRAL)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return 1 < conv.groups == conv.in_channels == conv.out_channels


def _largest_span(modules: Iterable[nn.Module]) -> Pair:
    spans = [span for module in modules if (span := _span(module)) is not None]
    return max((h for h, _ in spans), default=0), max((w for _, w in spans), default=0)


def _span(module: nn.Module) -> Pair | None:
    size = getattr(module, "kernel_size", None)
    if not isinstance(size, int | tuple) or (isinstance(size, tuple) and len(size) != 2):
        return None
    gaps = spacing(getattr(module, "dilation", 1))
    height, width = ((count - 1) * gap + 1 for count, gap in zip(spacing(size), gaps, strict=True))
    return height, width
