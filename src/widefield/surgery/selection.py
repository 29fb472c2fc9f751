"""Which convolutions of a network can have a large kernel in their place, and why the others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from timm.layers import Conv2dSame
from torch import nn
from torch.nn.modules.conv import _ConvNd

from widefield.nn.depthwise_conv import DepthwiseConv2d
from widefield.surgery.enlarged_conv import EnlargedConv2d, pads_by_image_size

_PLAIN = (nn.Conv2d, DepthwiseConv2d, Conv2dSame)
_HOOKS = ("fuse", "reparameterize", "switch_to_deploy")


def convolutions(model: nn.Module) -> dict[str, _ConvNd]:
    """Return every convolution of any dimension by its (first) name, in the order of the modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _ConvNd)}


def obstacle(conv: _ConvNd, shared: frozenset[int]) -> str | None:
    """Return why a convolution cannot be made larger at its place, or none.

    Args:
        conv: The convolution.
        shared: Parameters (their ``id``) that several modules hold.
    """
    kind = type(conv).__name__
    if isinstance(conv, EnlargedConv2d) and not conv.is_merged:
        return "it is enlarged already: merge it first"
    if not isinstance(conv, nn.Conv2d) or type(conv) not in (*_PLAIN, EnlargedConv2d):
        return f"{kind} is not an ordinary two-dimensional convolution"
    if "weight" not in conv._parameters:
        return "its weight is computed by something else (a weight norm or a pruning mask)"
    if any((conv._forward_hooks, conv._forward_pre_hooks, conv._backward_hooks, conv._backward_pre_hooks)):
        return "it has hooks, which would be lost"
    if any(id(parameter) in shared for parameter in conv.parameters()):
        return "another module has the same parameters"
    if conv.padding_mode != "zeros":
        return f"its padding is {conv.padding_mode}, not zeros"
    if any(size % 2 == 0 for size in conv.kernel_size):
        return f"its kernel of {conv.kernel_size[0]}x{conv.kernel_size[1]} has no centre"
    return None if _keeps_size(conv) else f"its padding {conv.padding} does not keep the size of the image"


def span(conv: nn.Conv2d) -> tuple[int, int]:
    """Return height and width of the window that a kernel looks at: d (k - 1) + 1."""
    height, width = (gap * (size - 1) + 1 for gap, size in zip(conv.dilation, conv.kernel_size, strict=True))
    return height, width


def shared_parameters(model: nn.Module) -> frozenset[int]:
    """Return the parameters, by their ``id``, that several modules hold."""
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return frozenset(parameter for parameter, count in holders.items() if count > 1)


def merge_unit(model: nn.Module, name: str) -> str | None:
    """Return the name of the outermost module above `name` that merges by a method of its own, or none."""
    for parent in _parents(name):
        module = model.get_submodule(parent)
        has_hook = any(callable(getattr(module, hook, None)) for hook in _HOOKS)
        if has_hook and getattr(module, "is_merged", False) is not True:
            return parent
    return None


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(len(parts)))


def _keeps_size(conv: nn.Conv2d) -> bool:
    spans = span(conv)
    if pads_by_image_size(conv):
        # With a smaller kernel there is nothing to pad at some image sizes, and the windows start elsewhere.
        return all(size >= step for size, step in zip(spans, conv.stride, strict=True))
    if isinstance(conv, Conv2dSame) or conv.padding == "same":
        return True
    return conv.padding == (spans[0] // 2, spans[1] // 2) or (conv.padding == "valid" and spans == (1, 1))
