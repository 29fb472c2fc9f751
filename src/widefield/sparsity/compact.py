"""Smaller dense networks that are the same function: what sparse training has emptied is taken out."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from widefield._core.checks import check
from widefield.sparsity.hidden_channels import Layer, RemovedChannels, hidden_pairs, remove_dead_channels, set_sizes
from widefield.sparsity.kernel_borders import Convolution, CroppedKernel, crop, croppable, set_weight, zero_margins
from widefield.sparsity.macs import count_macs

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class CompactReport:
    """What could be taken out, and what that saves, as measured."""

    parameters_before: int
    """Elements of all parameters before."""

    parameters_after: int
    """Elements of all parameters now."""

    macs_before: int
    """Multiply-accumulates for the example before."""

    macs_after: int
    """Multiply-accumulates for the example now."""

    latency_ms_before: float
    """Median time of a forward pass with the example before."""

    latency_ms_after: float
    """The same now; a difference of some percent is noise."""

    channels: tuple[RemovedChannels, ...]
    """Pairs of layers that have become narrower."""

    kernels: tuple[CroppedKernel, ...]
    """Kernels that have become smaller."""

    relative_error: float
    """Largest difference of the output over its largest value: rounding."""

    @property
    def summary(self) -> str:
        """One sentence."""
        if not self.channels and not self.kernels:
            return (
                "Nothing could be taken out: no hidden channel and no border of a kernel is zero throughout, as is "
                "usual with unstructured sparsity, whose zeros save space in a sparse file but no time."
            )
        hidden = sum(pair.before - pair.after for pair in self.channels)
        return (
            f"{hidden} hidden channels of {len(self.channels)} pairs of layers and the borders of {len(self.kernels)} "
            f"kernels were taken out: {self.parameters_before:,} -> {self.parameters_after:,} parameters, "
            f"{self.macs_before:,} -> {self.macs_after:,} multiply-accumulates, {self.latency_ms_before:.3g} -> "
            f"{self.latency_ms_after:.3g} ms, relative error {self.relative_error:.1e}."
        )


@torch.no_grad()
def compact(model: nn.Module, example: Tensor, *, runs: int = 5) -> CompactReport:
    """Take out of a network what is exactly nothing, in place.

    * Hidden channels between two linear layers, or two ungrouped convolutions, with element-wise functions between
      them: those that the second layer multiplies by zeros, and those that the first makes of zeros, whose constant
      goes into the second layer's bias. Found by symbolic tracing; where something else lies between or reads along,
      such as a response norm, nothing is touched.
    * Taps at both ends of a kernel that are zero in every channel, with their padding.

    Merge the network first: kernels of branched units are left alone. Shapes change: `fit_shapes` prepares a fresh
    model for the state dict.

    Args:
        model: Any module in evaluation mode.
        example: An input, for the report, and to see which convolutions run by themselves.
        runs: Forward passes that each latency is the median of.

    Returns:
        What was taken out, and what it saves.

    Raises:
        InputError: In training mode, or if there are no runs.
    """
    check(
        not any(module.training for module in model.modules()),
        "a network in evaluation mode to compact",
        "one in training mode",
        "call model.eval() first",
    )
    check(runs > 0, "at least one run", f"{runs}", "raise runs")
    before = _Measured.of(model, example, runs)
    channels = [removed for pair in hidden_pairs(model) if (removed := remove_dead_channels(model, pair)) is not None]
    kernels = _crop_kernels(model, example)
    after = _Measured.of(model, example, runs)
    return CompactReport(
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        macs_before=before.macs,
        macs_after=after.macs,
        latency_ms_before=before.latency_ms,
        latency_ms_after=after.latency_ms,
        channels=tuple(channels),
        kernels=tuple(kernels),
        relative_error=_relative_error(before.output, after.output),
    )


@torch.no_grad()
def fit_shapes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give linear layers and convolutions the shapes that they have in the state dict of a compacted copy.

    Args:
        model: Freshly built, merged if the copy was; its values are lost where shapes differ.
        state: The state dict, to be loaded afterwards.

    Raises:
        InputError: If a kernel would have to be cropped on one side only.
    """
    for name, layer in model.named_modules():
        weight = state.get(f"{name}.weight" if name else "weight")
        if not isinstance(layer, _LAYERS) or weight is None:
            continue
        bias = state.get(f"{name}.bias" if name else "bias")
        if bias is not None and (layer.bias is None or layer.bias.shape != bias.shape):
            layer.bias = nn.Parameter(layer.weight.new_zeros(bias.shape), requires_grad=layer.weight.requires_grad)
        if weight.shape != layer.weight.shape:
            _reshape(name, cast("Layer", layer), weight.shape)


def _reshape(name: str, layer: Layer, shape: torch.Size) -> None:
    check(
        len(shape) == layer.weight.dim(),
        f"a weight of {layer.weight.dim()} dimensions for {name}",
        f"one of {len(shape)}",
        "use the state dict of a compacted copy of this model",
    )
    weight = layer.weight.new_zeros(shape)
    if isinstance(layer, nn.Linear):
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        set_sizes(layer)
        return
    differences = [size - target for size, target in zip(layer.kernel_size, shape[2:], strict=True)]
    check(
        all(difference % 2 == 0 for difference in differences),
        f"a kernel cropped alike at both ends for {name}",
        f"{tuple(layer.kernel_size)} -> {tuple(shape[2:])}",
        "use the state dict of a compacted copy of this model",
    )
    set_weight(layer, weight, tuple(difference // 2 for difference in differences))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    output: Any
    parameters: int
    macs: int
    latency_ms: float

    @classmethod
    def of(cls, model: nn.Module, example: Tensor, runs: int) -> _Measured:
        output = model(example.clone())
        count = count_macs(model, example)
        return cls(
            output=output,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            macs=sum(count.by_parameter.values()) + count.other,
            latency_ms=_latency_ms(model, example, runs),
        )


def _latency_ms(model: nn.Module, example: Tensor, runs: int) -> float:
    times: list[float] = []
    for _ in range(runs):
        value = example.clone()
        _wait(example)
        started = time.perf_counter()
        model(value)
        _wait(example)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _crop_kernels(model: nn.Module, example: Tensor) -> list[CroppedKernel]:
    """Crop what can be, but undo it where a kernel is read by another module that does not bear it."""
    found = {name: conv for name, conv in croppable(model).items() if any(zero_margins(conv))}
    if not found:
        return []
    called: set[str] = set()
    handles = [conv.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, conv in found.items()]
    try:
        output = model(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    cropped = [_cropped(name, found[name]) for name in called]
    borrowed = [name for name in found if name not in called]
    owners = sorted({name.rpartition(".")[0] for name in borrowed})
    groups = [[name for name in borrowed if name.rpartition(".")[0] == owner] for owner in owners]
    kept = _tried(model, example, output, found, borrowed)
    if not kept and len(groups) > 1:
        kept = [kernel for group in groups for kernel in _tried(model, example, output, found, group)]
    places = list(found)
    return sorted(cropped + kept, key=lambda kernel: places.index(kernel.name))


def _tried(
    model: nn.Module, example: Tensor, output: Any, found: Mapping[str, Convolution], names: list[str]
) -> list[CroppedKernel]:
    """Crop these kernels, or leave all of them as they are if the output is then another."""
    originals = {name: (found[name].weight, found[name].padding) for name in names}
    cropped = [_cropped(name, found[name]) for name in names]
    if not cropped or _still_gives(model, example, output):
        return cropped
    for name, (weight, padding) in originals.items():
        found[name].weight, cast("Any", found[name]).padding = weight, padding
        set_sizes(found[name])
    return []


def _cropped(name: str, conv: Any) -> CroppedKernel:
    before = tuple(conv.kernel_size)
    crop(conv, zero_margins(conv))
    return CroppedKernel(name=name, before=before, after=tuple(conv.kernel_size))


def _still_gives(model: nn.Module, example: Tensor, output: Any) -> bool:
    try:
        value = model(example.clone())
    except Exception:
        # Whoever reads a kernel of another module may refuse its size in any way.
        return False
    eps = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    return _relative_error(output, value) <= min(1000 * eps, 0.01)


def _relative_error(expected: Any, actual: Any) -> float:
    errors = [0.0]
    for a, b in zip(tree_leaves(expected), tree_leaves(actual), strict=True):
        if isinstance(a, Tensor) and a.shape != b.shape:
            return math.inf
        if isinstance(a, Tensor) and a.numel():
            scale = a.double().abs().max().item()
            errors.append((a.double() - b.double()).abs().max().item() / (scale or 1.0))
    return max(errors)
