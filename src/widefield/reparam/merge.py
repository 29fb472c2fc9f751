"""Walk a network, fold every unit that can be folded, and measure what that changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.reparam.fold import fold_after, is_foldable_norm
from widefield.reparam.protocol import check_evaluation_mode
from widefield.reparam.report import MergeReport, UnitError

Where = Callable[[str, nn.Module], bool]

# The names under which timm's own layers and ours offer the same thing; `fuse` may return a replacement.
_HOOKS = ("fuse", "reparameterize", "switch_to_deploy")


def merge(model: nn.Module, example: Tensor | None = None, *, where: Where | None = None) -> MergeReport:
    """Turn a network into its inference form, in place, and certify that it is still the same function.

    Units are the outermost modules with a hook (``reparameterize``, ``fuse`` or ``switch_to_deploy``, as in timm) and,
    elsewhere, each convolution followed by its BatchNorm in an ``nn.Sequential``. Merging twice changes nothing.

    Args:
        model: Any module in evaluation mode; a sub-module alone will do.
        example: An input for the certificate, (N, C, H, W) for an image network. Without it, noise (seed 0) of the size
            that ``model.pretrained_cfg`` states or ``model.example_input()`` returns.
        where: Which units to fold, by name and module; all of them if none is given.

    Returns:
        Parameters before and after, the largest relative error of each unit and of the whole output.

    Raises:
        InputError: If a module is in training mode, or there is no example and none can be made.
    """
    check_evaluation_mode(model)
    example = _example_for(model) if example is None else example
    before_count = _count(model)
    names = [name for name, _ in _units(model, where)]
    with torch.no_grad():
        output, recorded = _record(model, example, names)
        fold(model, where=where)
        errors = tuple(
            UnitError(
                name=name, relative_error=_relative_error(unit_output, _submodule(model, name)(*inputs, **keywords))
            )
            for name, (inputs, keywords, unit_output) in recorded.items()
        )
        relative_error = _relative_error(output, model(example.clone()))
    return MergeReport(
        parameters_before=before_count,
        parameters_after=_count(model),
        relative_error=relative_error,
        unit_errors=errors,
        dtype=str(example.dtype).removeprefix("torch."),
        example_shape=tuple(example.shape),
    )


def fold(model: nn.Module, *, where: Where | None = None) -> list[str]:
    """Fold as `merge` does, without the certificate: for giving a new network the shape of a merged checkpoint.

    Args:
        model: Any module in evaluation mode.
        where: Which units to fold; all if none is given.

    Returns:
        The names of the units that were folded.

    Raises:
        InputError: If a module is in training mode.
    """
    check_evaluation_mode(model)
    units = list(_units(model, where))
    for name, action in units:
        replacement = action()
        if isinstance(replacement, nn.Module) and name:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, replacement)
    # What a hook puts in place of others starts in training mode.
    model.eval()
    return [name for name, _ in units]


def _units(module: nn.Module, where: Where | None, name: str = "") -> Iterator[tuple[str, Callable[[], object]]]:
    action = _action(module)
    if action is not None and (where is None or where(name, module)):
        yield name, action
        if not isinstance(module, nn.Sequential) or _hook(module) is not None:
            return
    for child_name, child in module.named_children():
        yield from _units(child, where, f"{name}.{child_name}" if name else child_name)


def _action(module: nn.Module) -> Callable[[], object] | None:
    if getattr(module, "is_merged", False) is True:
        return None
    hook = _hook(module)
    if hook is None and isinstance(module, nn.Sequential) and _pairs(module):
        return lambda: _fold_sequential(module)
    return hook


def _hook(module: nn.Module) -> Callable[[], object] | None:
    methods = (getattr(module, name, None) for name in _HOOKS)
    return next((cast("Callable[[], object]", method) for method in methods if callable(method)), None)


def _pairs(module: nn.Sequential) -> list[tuple[str, str]]:
    children = list(module.named_children())
    return [
        (first_name, second_name)
        for (first_name, first), (second_name, second) in pairwise(children)
        if isinstance(first, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) and is_foldable_norm(second)
    ]


def _fold_sequential(module: nn.Sequential) -> None:
    for layer_name, norm_name in _pairs(module):
        layer = cast("nn.Conv2d", module.get_submodule(layer_name))
        fold_after(layer, module.get_submodule(norm_name))
        setattr(module, norm_name, nn.Identity())


def _record(
    model: nn.Module, example: Tensor, names: Sequence[str]
) -> tuple[object, dict[str, tuple[tuple[Any, ...], dict[str, Any], object]]]:
    inputs: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    recorded: dict[str, tuple[tuple[Any, ...], dict[str, Any], object]] = {}

    # Some layers work in place on what they are given or give: keep copies, of the input before the layer has run.
    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, values: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            inputs[name] = tuple(map(_copy, values)), {key: _copy(value) for key, value in keywords.items()}

        return hook

    def after(name: str) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def hook(_: nn.Module, values: tuple[Any, ...], output: object) -> None:
            recorded[name] = (*inputs.pop(name), _copy(output))

        return hook

    handles = [
        handle
        for name in names
        for handle in (
            _submodule(model, name).register_forward_pre_hook(before(name), with_kwargs=True),
            _submodule(model, name).register_forward_hook(after(name)),
        )
    ]
    try:
        output = _copy(model(example.clone()))
    finally:
        for handle in handles:
            handle.remove()
    return output, recorded


def _copy(value: object) -> object:
    return value.clone() if isinstance(value, Tensor) else value


def _submodule(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name) if name else model


def _relative_error(expected: object, actual: object) -> float:
    pairs = list(zip(_tensors(expected), _tensors(actual), strict=True))
    check(bool(pairs), "a network that returns tensors", type(expected).__name__, "merge the part of it that does")
    return max(_tensor_error(a.double(), b.double()) for a, b in pairs)


def _tensor_error(expected: Tensor, actual: Tensor) -> float:
    if expected.numel() == 0:
        return 0.0
    largest = (actual - expected).abs().max().item()
    scale = expected.abs().max().item()
    if not math.isfinite(largest) or not math.isfinite(scale):
        return math.inf
    return largest / scale if scale else largest


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in cast("dict[Any, Any]", value).values() for tensor in _tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in cast("Sequence[Any]", value) for tensor in _tensors(item)]
    return []


def _example_for(model: nn.Module) -> Tensor:
    maker = getattr(model, "example_input", None)
    if callable(maker):
        return cast("Tensor", maker())
    config = getattr(model, "pretrained_cfg", None)
    stated = cast("dict[str, Any]", config) if isinstance(config, dict) else {}
    size = stated.get("input_size")
    parameter = next(model.parameters(), None)
    check(
        size is not None and parameter is not None,
        "an example input for the certificate, or a network that states its input size",
        f"{type(model).__name__} without either",
        "pass example=, for instance torch.randn(1, 3, 224, 224)",
    )
    assert parameter is not None
    _, *pixels = cast("tuple[int, ...]", size)
    # With in_chans= a network has other channels than its configuration states.
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    first = dict(modules).get(str(stated.get("first_conv")))
    channels = first.in_channels if isinstance(first, nn.Conv2d) else cast("tuple[int, ...]", size)[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, *pixels, generator=generator).to(parameter.device, parameter.dtype)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
