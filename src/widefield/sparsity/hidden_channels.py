"""Hidden channels between two layers that contribute nothing, or a constant."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import Node

logger = logging.getLogger(__name__)

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_INERT = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# Element by element, without parameters of a channel.
_POINTWISE_MODULES = (
    nn.GELU, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LeakyReLU, nn.ELU,
    nn.Sigmoid, nn.Tanh, nn.Softplus,
)  # fmt: skip
_POINTWISE_FUNCTIONS = frozenset(
    {F.gelu, F.relu, F.relu6, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu}
    | {torch.relu, torch.sigmoid, torch.tanh}
)


@dataclass(frozen=True, kw_only=True)
class HiddenPair:
    """Two layers with nothing but element-wise functions between them, and no other reader of what is between."""

    first: str
    """Name of the layer whose output channels these are."""

    second: str
    """Name of the layer whose input channels they are."""

    between: tuple[Callable[[Tensor], Tensor], ...]
    """The functions, in order."""


@dataclass(frozen=True, kw_only=True)
class RemovedChannels:
    """A pair of layers that has become narrower."""

    first: str
    """Name of the layer that made the channels."""

    second: str
    """Name of the layer that read them."""

    before: int
    """Hidden channels before."""

    after: int
    """Hidden channels now."""


def hidden_pairs(model: nn.Module) -> list[HiddenPair]:
    """Find the pairs of linear layers, or of convolutions, by symbolic traces of as large parts as can be traced.

    Args:
        model: Any module in evaluation mode.

    Returns:
        Pairs of ungrouped layers that belong to one place of the model alone.
    """
    modules = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    parameters = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))

    def is_free(layer: nn.Module) -> bool:
        return (
            isinstance(layer, _LAYERS)
            and getattr(layer, "groups", 1) == 1
            and "weight" in layer._parameters
            and modules[id(layer)] == 1
            and all(parameters[id(parameter)] == 1 for parameter in layer.parameters())
            and not (layer._forward_hooks or layer._forward_pre_hooks)
        )

    return [pair for name, part, graph in _traced(model, "") for pair in _pairs(name, part, graph, is_free)]


@torch.no_grad()
def remove_dead_channels(model: nn.Module, pair: HiddenPair) -> RemovedChannels | None:
    """Take away the hidden channels that nothing reads or whose value is the same everywhere, which is added to a bias.

    Args:
        model: In evaluation mode.
        pair: One of `hidden_pairs(model)`.

    Returns:
        What was removed, or none. One channel always stays.
    """
    first, second = cast("Layer", model.get_submodule(pair.first)), cast("Layer", model.get_submodule(pair.second))
    rows, columns = first.weight.flatten(1), second.weight.transpose(0, 1).flatten(1)
    value = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    if first.bias is not None:
        value += first.bias
    for function in pair.between:
        value = function(value)
    unread = ~columns.any(1)
    constant = ~rows.any(1) & value.isfinite()
    if not _sees_one_place(second):
        # At the border of an image the zeros of the padding stand in for the constant.
        constant &= value == 0
    dead = unread | constant
    if bool(dead.all()):
        dead[0] = False
    if not bool(dead.any()):
        return None
    shift = (
        columns.reshape(len(rows), second.weight.shape[0], -1).sum(2).double()[dead & ~unread].T @ value[dead & ~unread]
    )
    before = len(rows)
    _narrow(first, second, ~dead, shift)
    return RemovedChannels(first=pair.first, second=pair.second, before=before, after=len(first.weight))


def _narrow(first: Layer, second: Layer, keep: Tensor, shift: Tensor) -> None:
    first.weight = _like(first.weight[keep], first.weight)
    if first.bias is not None:
        first.bias = _like(first.bias[keep], first.bias)
    if second.bias is not None:
        second.bias = _like(second.bias.double() + shift, second.bias)
    elif bool(shift.any()):
        second.bias = _like(shift, second.weight)
    second.weight = _like(second.weight[:, keep], second.weight)
    set_sizes(first)
    set_sizes(second)


def set_sizes(layer: Layer) -> None:
    """Make a layer's record of its channels and its kernel that of its weight."""
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, inputs
    else:
        layer.out_channels, layer.in_channels = outputs, inputs * layer.groups
        cast("Any", layer).kernel_size = tuple(layer.weight.shape[2:])


def _like(value: Tensor, parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(parameter.dtype).contiguous(), requires_grad=parameter.requires_grad)


def _sees_one_place(layer: Layer) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    padding = layer.padding in ("valid", (0,) * len(layer.kernel_size))
    return all(size == 1 for size in layer.kernel_size) and (padding or layer.padding == "same")


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LAYERS) or super().is_leaf_module(m, module_qualified_name)


def _traced(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, torch.fx.Graph]]:
    """Trace `module`, or its children where it cannot be traced as one."""
    if not any(isinstance(part, _LAYERS) for part in module.modules()) or isinstance(module, _LAYERS):
        return
    try:
        graph = _Tracer().trace(module)
    except Exception:
        # A forward may do anything with a symbolic value: its parts are looked at one by one.
        logger.debug("%s cannot be traced as one", name or type(module).__name__, exc_info=True)
    else:
        yield name, module, graph
        return
    for child_name, child in module.named_children():
        yield from _traced(child, f"{name}.{child_name}" if name else child_name)


def _pairs(
    prefix: str, part: nn.Module, graph: torch.fx.Graph, is_free: Callable[[nn.Module], bool]
) -> Iterator[HiddenPair]:
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def layer_of(node: Node) -> Layer | None:
        name = str(node.target)
        if node.op != "call_module" or calls[name] > 1 or name in read or len(node.args) != 1 or node.kwargs:
            return None
        module = part.get_submodule(name)
        return cast("Layer", module) if is_free(module) else None

    for node in graph.nodes:
        first = layer_of(node)
        if first is None:
            continue
        between: list[Callable[[Tensor], Tensor]] = []
        last: Node = node
        while len(last.users) == 1:
            user = next(iter(last.users))
            second = layer_of(user)
            if second is not None:
                if _same_kind(first, second) and user.args[0] is last:
                    names = (
                        f"{prefix}.{target}" if prefix else target for target in (str(node.target), str(user.target))
                    )
                    yield HiddenPair(**dict(zip(("first", "second"), names, strict=True)), between=tuple(between))
                break
            function = _pointwise(user, part)
            if function is None or user.args[0] is not last:
                break
            between.append(function)
            last = user


def _same_kind(first: Layer, second: Layer) -> bool:
    """Return whether the channels of both are on the same axis."""
    kinds = [[isinstance(layer, kind) for kind in _LAYERS] for layer in (first, second)]
    return kinds[0] == kinds[1] and first.weight.shape[0] == second.weight.shape[1]


def _pointwise(node: Node, part: nn.Module) -> Callable[[Tensor], Tensor] | None:
    if not node.args:
        return None
    others = [arg for arg in (*node.args[1:], *node.kwargs.values()) if isinstance(arg, Node)]
    if node.op == "call_module":
        module = part.get_submodule(str(node.target))
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        if type(module) in _INERT:
            return lambda value: value
        # On a copy, since some work in place.
        return (lambda value: module(value.clone())) if type(module) in _POINTWISE_MODULES else None
    if node.op == "call_function" and node.target in _POINTWISE_FUNCTIONS and not others:
        target, rest, named = cast("Any", node.target), node.args[1:], node.kwargs
        return lambda value: target(value, *rest, **named)
    return None
