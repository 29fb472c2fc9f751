"""A published checkpoint in, the network with its weights out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.checkpoints.comparison import check_whole
from widefield.checkpoints.files import Weights, read_checkpoint, unwrap
from widefield.checkpoints.layouts import Family
from widefield.checkpoints.recognise import Recognised, recognise
from widefield.checkpoints.tensors import check_types, check_unshared, check_values
from widefield.models import replknet, slak, unireplknet
from widefield.models._merged_form import units_to_fold
from widefield.reparam import fold

logger = logging.getLogger(__name__)

_FAMILIES: dict[Family, tuple[ModuleType, type[nn.Module], str]] = {
    "replknet": (replknet, replknet.RepLKNet, "replknet_31b"),
    "slak": (slak, slak.SLaK, "slak_t"),
    "unireplknet": (unireplknet, unireplknet.UniRepLKNet, "unireplknet_t"),
}

# Arguments that say nothing of which variant it is.
_FREE = ("in_chans", "num_classes", "feature_norms")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published checkpoint that was recognised and found whole."""

    recognised: Recognised
    """What it is."""
    tensors: dict[str, Tensor]
    """The network's tensors under our names."""
    variant: str | None
    """Name of our model with this architecture, if there is one."""
    taken: str | None
    """Under which name the state dict lay in the file; none if it was bare."""
    others: tuple[str, ...]
    """Names of further state dicts in the file."""


def read_published(source: str | PathLike[str] | Mapping[str, Any], weights: Weights = "auto") -> Published:
    """Read a published checkpoint and check that it is whole.

    Args:
        source: A file, or a state dict, bare or wrapped ("state_dict", "model" and the like).
        weights: Which state dict of a file to take, see `widefield.checkpoints.files.read_checkpoint`.

    Raises:
        InputError: If it cannot be read, is not recognised, a name, a shape or a kind of type differs from the
            network's, or a value is not finite; they are named.
    """
    return _read(source, weights)[0]


def load_published(
    source: str | PathLike[str] | Mapping[str, Any], *, weights: Weights = "auto", **model_kwargs: Any
) -> nn.Module:
    """Make the network of a published RepLKNet, SLaK or UniRepLKNet checkpoint, with its weights.

    What it is, is found out from its names and shapes: the authors' files, mmpretrain's, the backbones in
    mmsegmentation's and mmdetection's, and ours; branched or merged, the network then has the same form. The weights
    keep their type. Heads of larger models are left out: such a backbone has no classifier and no final norm, unless
    `num_classes` asks for one.

    Args:
        source: A file, or a state dict, bare or wrapped ("state_dict", "model" and the like).
        weights: Which state dict of a file to take: the trained "model" or the "ema", the moving average of its
            weights; "auto" prefers the former.
        **model_kwargs: For the network, in place of what the checkpoint says. With another `num_classes` the classifier
            is new and all else is the checkpoint's; with another `in_chans` the first convolution is converted as timm
            does it; with `device` and `dtype` the weights go there. What the network does not know is refused.

    Returns:
        The network in evaluation mode.

    Raises:
        InputError: If the checkpoint cannot be read, is not recognised, is not whole, holds what is not finite, or does
            not fit `model_kwargs`.
    """
    published, model = _read(source, weights)
    recognised = published.recognised
    place = {name: model_kwargs.pop(name) for name in ("device", "dtype") if name in model_kwargs}
    classes = model_kwargs.pop("num_classes", recognised.model_kwargs["num_classes"])
    is_new_head = classes != recognised.model_kwargs["num_classes"]
    state = _adapted(published, model_kwargs, needs_norm=bool(classes))
    if is_new_head:
        model_kwargs["num_classes"] = 0
        state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    if model_kwargs:
        model = _shell(recognised, published.variant, state, model_kwargs)
        _check_fits(model, state, model_kwargs)
    if isinstance(source, Mapping):
        state = {key: tensor.clone() for key, tensor in state.items()}
    model.load_state_dict(state, assign=True)
    if is_new_head:
        dtype = next(model.parameters()).dtype
        model.reset_classifier(classes)
        model.head.to(dtype=dtype)
    return model.to(**place).eval()


def _read(source: str | PathLike[str] | Mapping[str, Any], weights: Weights) -> tuple[Published, Any]:
    """Read a checkpoint, and make its network with no weights in it yet."""
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    content = unwrap(source, name, weights) if isinstance(source, Mapping) else read_checkpoint(Path(source), weights)
    recognised = recognise(content.tensors, name)
    tensors = recognised.ours(content.tensors)
    variant = _variant_of(recognised)
    model = _shell(recognised, variant, tensors, {})
    own = model.state_dict()
    check_whole({key: tensor.shape for key, tensor in own.items()}, recognised.naming, content.tensors, name)
    check_unshared(tensors, name)
    check_types(own, tensors, recognised.naming.names, name)
    check_values(tensors, recognised.naming.names, name)
    published = Published(
        recognised=recognised, tensors=tensors, variant=variant, taken=content.taken, others=content.others
    )
    return published, model


def _shell(
    recognised: Recognised, variant: str | None, state: Mapping[str, Tensor], model_kwargs: Mapping[str, Any]
) -> Any:
    """Make the network of a state dict in the same form, with no weights in it yet."""
    name = variant or _FAMILIES[recognised.family][2]
    # timm.create_model would drop what is None.
    with torch.device("meta"):
        model = timm.model_entrypoint(name)(**{**recognised.model_kwargs, **model_kwargs}).eval()
    if not any(key.startswith(("norm.", "head.")) for key in state):
        model.norm = nn.Identity().eval()
    if recognised.form == "merged":
        units = set(units_to_fold(model, state))
        fold(model, where=lambda name, _: name in units)
    return model


def _adapted(published: Published, model_kwargs: Mapping[str, Any], *, needs_norm: bool) -> dict[str, Tensor]:
    """Convert the first convolution, and add or drop norms, as the arguments ask for."""
    state = dict(published.tensors)
    own = published.recognised.model_kwargs
    in_chans = model_kwargs.get("in_chans", own["in_chans"])
    if in_chans != own["in_chans"]:
        check(
            own["in_chans"] == 3,
            "a checkpoint for images of 3 channels to convert to others",
            f"one for {own['in_chans']}",
            f"use in_chans={own['in_chans']}",
        )
        first = next(key for key in state if key in ("stem.0.weight", "stem.0.conv.weight"))
        state[first] = adapt_input_conv(in_chans, state[first])
    channels, wants_norms = own["channels"], model_kwargs.get("feature_norms", own["feature_norms"])
    fresh: dict[str, int] = {}
    if not wants_norms:
        state = {key: tensor for key, tensor in state.items() if not key.startswith("feature_norms.")}
    elif not own["feature_norms"]:
        fresh |= {f"feature_norms.{stage}": width for stage, width in enumerate(channels)}
    if needs_norm and "norm.weight" not in state:
        fresh["norm"] = channels[-1]
    if fresh:
        logger.warning("the checkpoint has no %s: new ones are made", ", ".join(fresh))
    kind = nn.BatchNorm2d if published.recognised.family == "replknet" else nn.LayerNorm
    dtype = next(iter(state.values())).dtype
    for name, width in fresh.items():
        state |= {f"{name}.{key}": tensor for key, tensor in kind(width).to(dtype).state_dict().items()}
    return state


def _check_fits(model: nn.Module, state: Mapping[str, Tensor], model_kwargs: Mapping[str, Any]) -> None:
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    there = {key: tensor.shape for key, tensor in state.items()}
    differing = [key for key in {**expected, **there} if expected.get(key) != there.get(key)]
    check(
        not differing,
        "settings that the weights of the checkpoint fit",
        f"{', '.join(f'{name}={value!r}' for name, value in model_kwargs.items())}, with which "
        f"{differing[0] if differing else ''!r} differs",
        "leave out what changes the network",
    )


def _variant_of(recognised: Recognised) -> str | None:
    module, kind, _ = _FAMILIES[recognised.family]
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    # Which small kernel there was cannot be seen in a merged network.
    ignored = (*_FREE, "small_kernel_size", "layer_scale") if recognised.form == "merged" else _FREE
    own = {name: value for name, value in recognised.model_kwargs.items() if name not in ignored}
    for name, variant in module.VARIANTS.items():
        settings = {**defaults, **vars(variant)}
        if _spread(own, own["depths"]) == _spread({key: settings[key] for key in own}, settings["depths"]):
            return name
    return None


def _spread(settings: Mapping[str, Any], depths: Sequence[int]) -> dict[str, Any]:
    """Settings with the kernel size of every block, where they may be for whole stages."""
    sizes = tuple(
        (size,) * depth if isinstance(size, int) else tuple(size)
        for size, depth in zip(settings["kernel_sizes"], depths, strict=True)
    )
    return {**settings, "kernel_sizes": sizes}
