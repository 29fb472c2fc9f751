"""Large kernels for the convolutions of any network, which computes the same function as before until it is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from widefield._core.checks import check, check_name
from widefield.nn.dilated_reparam_conv import branch_table
from widefield.reparam import fold
from widefield.surgery.enlarged_conv import EnlargedConv2d, is_depthwise_conv
from widefield.surgery.large_kernel import DecomposedKernel, LargeKernel, PeripheralKernel, SummedKernel
from widefield.surgery.report import EnlargedLayer, EnlargeReport, SkippedLayer
from widefield.surgery.selection import convolutions, merge_unit, obstacle, shared_parameters, span

Method = Literal["dense", "dilated", "decomposed", "peripheral"]
METHODS = ("dense", "dilated", "decomposed", "peripheral")
Where = Callable[[str, nn.Conv2d], bool]
Size = int | Callable[[str, nn.Conv2d], int | None]


def enlarge(
    model: nn.Module,
    kernel_size: Size,
    method: Method = "dilated",
    *,
    where: Where | None = None,
    include_dense: bool = False,
    branch: bool = True,
    stripe_width: int | None = None,
    centre_radius: int | None = None,
) -> EnlargeReport:
    """Give convolutions of a network large kernels, in place, without changing what it computes.

    The old kernel lies in the centre of the new one, whose other parameters start at zero and receive gradients from
    the first step on. `widefield.merge` turns every layer into one plain K x K convolution. Strides, groups, biases,
    dtypes, devices and ``requires_grad`` stay; dilated kernels become undilated ones with zeros between their taps.
    There is no norm in the branches, unlike in the papers: with fresh statistics it would change the function.
    Make the optimizer afterwards, since the parameters are new ones. To load weights that were saved after an
    enlargement, make the network anew and enlarge it in the same way first.

    Methods: "dense", a K x K kernel beside the old one (RepLKNet); "dilated", that and small dilated branches
    (UniRepLKNet); "decomposed", stripes K x N and N x K and a square that holds the old kernel (SLaK); "peripheral", a
    kernel whose outer taps share parameters (PeLK). The last two are for depthwise convolutions alone.

    Args:
        model: Any network with two-dimensional convolutions that keep the size of the image, up to their stride.
        kernel_size: K, odd; or a function of name and convolution that returns it, or none to leave that one.
        method: How the large kernel is made up.
        where: Which convolutions, by name and module; without it, all depthwise ones of more than one tap.
        include_dense: Without `where`, ordinary convolutions of more than one tap too.
        branch: For "dense" and "dilated": keep the old kernel as a branch instead of a part of the large kernel.
        stripe_width: For "decomposed": N; by default the old kernel's size, and at least 5.
        centre_radius: For "peripheral": single taps around the central one; by default the old kernel's, at least 2.

    Returns:
        Every convolution by name: its sizes and parameters before and after, or why it was left as it is.

    Raises:
        InputError: If a size is even or smaller than the old kernel, an option does not belong to the method, the
            method needs depthwise convolutions and another was chosen, or there is nothing to enlarge. The network is
            then unchanged.
    """
    check_name(method, METHODS, "method")
    _check_options(method, branch, stripe_width, centre_radius)
    is_single = isinstance(model, nn.Conv2d)
    check(not is_single, "a network of modules", "a convolution alone", "put it into an nn.Sequential")
    before = _count(model)
    options = _Options(method, branch, stripe_width, centre_radius)
    chosen, skipped = _choose(model, kernel_size, where, include_dense, method)
    enlarged = {name: EnlargedConv2d(conv, options.kernel(conv, size)) for name, (conv, size) in chosen.items()}
    for name, reason in _refused_by_their_units(model, enlarged).items():
        del enlarged[name]
        skipped[name] = reason
    _check_some(model, enlarged, skipped)
    layers = tuple(_described(name, chosen[name][0], layer, method) for name, layer in enlarged.items())
    _replace(model, {id(chosen[name][0]): layer for name, layer in enlarged.items()})
    return EnlargeReport(
        layers=layers,
        skipped=tuple(SkippedLayer(name=name, reason=reason) for name, reason in skipped.items()),
        parameters_before=before,
        parameters_after=_count(model),
    )


@dataclass(frozen=True)
class _Options:
    method: Method
    branch: bool
    stripe_width: int | None
    centre_radius: int | None

    def kernel(self, conv: nn.Conv2d, size: int) -> LargeKernel:
        gaps = (conv.dilation[0], conv.dilation[1])
        if self.method == "decomposed":
            return DecomposedKernel(conv.weight, gaps, size, stripe_width=self.stripe_width)
        if self.method == "peripheral":
            return PeripheralKernel(conv.weight, gaps, size, centre_radius=self.centre_radius)
        branches = branch_table(size) if self.method == "dilated" else ()
        return SummedKernel(conv.weight, gaps, size, has_small=self.branch, branches=branches)


def _check_options(method: Method, branch: bool, stripe_width: int | None, centre_radius: int | None) -> None:
    given = {
        "branch=False": (not branch, ("dense", "dilated")),
        "stripe_width": (stripe_width is not None, ("decomposed",)),
        "centre_radius": (centre_radius is not None, ("peripheral",)),
    }
    for option, (is_given, methods) in given.items():
        check(
            not is_given or method in methods,
            f"options of the method {method!r}",
            f"{option}, which belongs to {' and '.join(map(repr, methods))}",
            "leave it out or change the method",
        )


def _choose(
    model: nn.Module, kernel_size: Size, where: Where | None, include_dense: bool, method: Method
) -> tuple[dict[str, tuple[nn.Conv2d, int]], dict[str, str]]:
    shared = shared_parameters(model)
    chosen: dict[str, tuple[nn.Conv2d, int]] = {}
    skipped: dict[str, str] = {}
    for name, conv in convolutions(model).items():
        reason = obstacle(conv, shared)
        if isinstance(conv, nn.Conv2d):
            reason = _not_wanted(name, conv, where, include_dense) or reason
        if reason is None and isinstance(conv, nn.Conv2d):
            size = kernel_size(name, conv) if callable(kernel_size) else kernel_size
            reason = _check_size(name, conv, size)
            if reason is None and size is not None:
                _check_method(name, conv, method)
                chosen[name] = conv, size
        if reason is not None:
            skipped[name] = reason
    return chosen, skipped


def _not_wanted(name: str, conv: nn.Conv2d, where: Where | None, include_dense: bool) -> str | None:
    if where is not None:
        return None if where(name, conv) else "it was not chosen by where="
    if max(conv.kernel_size) == 1:
        return "it has a single tap (to be chosen with where=)"
    if not include_dense and not is_depthwise_conv(conv):
        return "it is not depthwise (to be chosen with include_dense=True or where=)"
    return None


def _check_size(name: str, conv: nn.Conv2d, size: int | None) -> str | None:
    if size is None:
        return "kernel_size gave none for it"
    is_odd = isinstance(size, int) and size % 2 == 1
    check(is_odd, f"an odd kernel size for {name!r}", f"{size!r}", "use the next odd number, so that there is a centre")
    least = max(span(conv))
    check(
        size >= least,
        f"a kernel size of at least {least} for {name!r}, whose kernel spans that much",
        f"{size}",
        "use a larger size, or leave that convolution out with where=",
    )
    return f"its kernel is {size}x{size} already" if conv.kernel_size == (size, size) else None


def _check_method(name: str, conv: nn.Conv2d, method: Method) -> None:
    check(
        is_depthwise_conv(conv) or method in ("dense", "dilated"),
        f"depthwise convolutions for the method {method!r}",
        f"{name!r} with {conv.in_channels} inputs, {conv.out_channels} outputs and {conv.groups} groups",
        'use "dense" or "dilated" for it, or leave it out',
    )


def _refused_by_their_units(model: nn.Module, enlarged: Mapping[str, EnlargedConv2d]) -> dict[str, str]:
    units: dict[str, dict[str, EnlargedConv2d]] = {}
    for name, layer in enlarged.items():
        unit = merge_unit(model, name)
        if unit is not None:
            units.setdefault(unit, {})[name.removeprefix(f"{unit}.")] = layer
    refused: dict[str, str] = {}
    for unit, layers in units.items():
        module = model.get_submodule(unit)
        if not _still_merges(module, layers):
            reason = f"{type(module).__name__} merges in a way that needs its kernel as it is: merge the network first"
            refused.update({f"{unit}.{name}" if unit else name: reason for name in layers})
    return refused


def _still_merges(unit: nn.Module, layers: Mapping[str, EnlargedConv2d]) -> bool:
    """Whether a module that merges by its own method takes branches for the kernel that they sum up to."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: copy.deepcopy(layer).to("cpu", torch.float64).eval() for name, layer in layers.items()}
    for layer in drawn.values():
        for parameter in layer.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    plain = {name: copy.deepcopy(layer).fuse() for name, layer in drawn.items()}
    merged: list[dict[str, torch.Tensor]] = []
    try:
        for parts in (drawn, plain):
            trial = nn.ModuleDict({"unit": copy.deepcopy(unit).to("cpu", torch.float64)})
            _replace(trial, {id(trial.get_submodule(f"unit.{name}")): part for name, part in parts.items()})
            with torch.no_grad():
                fold(trial.eval())
            if not all(tuple(m.weight.shape[2:]) == m.kernel_size for m in trial.modules() if isinstance(m, nn.Conv2d)):
                return False
            merged.append(trial.state_dict())
    except Exception:
        # Methods of others fail in ways of their own on kernels of a size that they do not expect.
        return False
    first, second = merged
    return first.keys() == second.keys() and all(torch.allclose(first[name], second[name]) for name in first)


def _replace(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if child is not None and id(child) in replacements:
                setattr(module, name, replacements[id(child)])


def _check_some(model: nn.Module, enlarged: Mapping[str, EnlargedConv2d], skipped: Mapping[str, str]) -> None:
    # What was chosen and refused says more than what was not chosen.
    telling = sorted(skipped.items(), key=lambda item: "chosen" in item[1])
    reason = f"with {len(skipped)}, none of them ({telling[0][0]!r}: {telling[0][1]})" if telling else "without any"
    check(
        bool(enlarged),
        "a network with convolutions to enlarge",
        f"{type(model).__name__} {reason}",
        "choose convolutions with where= or include_dense=True",
    )


def _described(name: str, conv: nn.Conv2d, layer: EnlargedConv2d, method: Method) -> EnlargedLayer:
    bias = 0 if conv.bias is None else conv.bias.numel()
    taps = conv.weight.shape[0] * conv.weight.shape[1]
    return EnlargedLayer(
        name=name,
        method=method,
        old_kernel_size=(conv.kernel_size[0], conv.kernel_size[1]),
        kernel_size=(layer.kernel_size[0], layer.kernel_size[1]),
        parameters_before=_count(conv),
        parameters_after=_count(layer),
        merged_parameters=taps * layer.kernel_size[0] * layer.kernel_size[1] + bias,
    )


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
