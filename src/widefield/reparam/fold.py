"""Fold a BatchNorm into the convolution or linear layer beside it, in place."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from widefield._core.checks import check
from widefield.reparam.algebra import affine_of_batch_norm, as_double, fold_affine_after, fold_affine_before

Affine = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def is_foldable_norm(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether `module` is a BatchNorm with running statistics and nothing more: an affine map in evaluation mode."""
    # timm's BatchNormAct2d is a BatchNorm that also holds a dropout and an activation.
    is_plain = all(isinstance(child, nn.Identity) for child in module.children())
    return isinstance(module, _BatchNorm) and module.running_mean is not None and is_plain


def fold_after(layer: Affine, norm: nn.Module) -> None:
    """Give `layer` the weight and bias of ``norm(layer(x))``.

    Raises:
        InputError: If `norm` is not a BatchNorm with running statistics.
    """
    set_parameters(layer, *folded_after(layer, norm))


def folded_after(layer: Affine, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of ``norm(layer(x))`` in float64 and leave both modules as they are.

    An ``nn.Identity`` stands for a norm that has been folded already.

    Raises:
        InputError: If `norm` is neither that nor a BatchNorm with running statistics.
    """
    weight, bias = as_double(layer.weight), _bias(layer)
    if isinstance(norm, nn.Identity):
        return weight, weight.new_zeros(weight.shape[0]) if bias is None else bias
    return fold_affine_after(weight, bias, *_affine(norm))


def fold_before(norm: nn.Module, layer: Affine) -> None:
    """Give `layer` the weight and bias of ``layer(norm(x))``.

    Raises:
        InputError: If `norm` is not a BatchNorm with running statistics, or `layer` pads or is grouped.
    """
    if not isinstance(layer, nn.Linear):
        pads = layer.padding != "valid" and (layer.padding == "same" or any(map(int, layer.padding)))
        check(
            layer.groups == 1 and not pads,
            "a convolution without padding and groups after the norm",
            f"padding {layer.padding} and {layer.groups} groups",
            "keep that norm",
        )
    weight, bias = fold_affine_before(as_double(layer.weight), _bias(layer), *_affine(norm))
    set_parameters(layer, weight, bias)


def fold_scale_after(layer: Affine, scale: Tensor) -> None:
    """Give `layer` the weight and bias of ``scale * layer(x)``, for instance a layer scale.

    Args:
        layer: The layer before the product.
        scale: (C_out,).
    """
    factor = as_double(scale)
    set_parameters(layer, *fold_affine_after(as_double(layer.weight), _bias(layer), factor, torch.zeros_like(factor)))


def set_parameters(layer: Affine, weight: Tensor, bias: Tensor) -> None:
    """Replace weight and bias of `layer`, keeping its dtype, device and ``requires_grad``."""
    like = layer.weight
    for name, value in (("weight", weight), ("bias", bias)):
        tensor = value.to(like.device, like.dtype)
        setattr(layer, name, nn.Parameter(tensor, requires_grad=like.requires_grad))


def _bias(layer: Affine) -> Tensor | None:
    return None if layer.bias is None else as_double(layer.bias)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    check(
        is_foldable_norm(norm),
        "a BatchNorm with running statistics",
        type(norm).__name__,
        "only such a norm is an affine map that can be folded",
    )
    assert is_foldable_norm(norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = as_double(norm.weight) if norm.affine else None
    bias = as_double(norm.bias) if norm.affine else None
    return affine_of_batch_norm(as_double(norm.running_mean), as_double(norm.running_var), weight, bias, norm.eps)
