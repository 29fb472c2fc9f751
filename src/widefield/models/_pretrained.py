"""Published checkpoints for `timm.create_model(..., pretrained=True)`: what timm has read, made to fit the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.models import resolve_pretrained_cfg
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.checkpoints.comparison import check_whole
from widefield.checkpoints.files import unwrap
from widefield.checkpoints.recognise import Recognised, recognise
from widefield.checkpoints.tensors import check_types, check_values

logger = logging.getLogger(__name__)

_SOURCE = "the pretrained checkpoint"
_HEAD = ("head.fc.weight", "head.fc.bias")


def pretrained_filter(content: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Make of a checkpoint of RepLKNet, SLaK or UniRepLKNet the state dict that a model of ours takes.

    timm calls it with what a file holds, before it converts the first convolution and drops a classifier for other
    classes. The checkpoint may have any of the layouts that `recognise` knows. What the backbone of a larger model does
    not have, the final norm and the head, stays as it is in the model, and so does a head for other classes.

    Args:
        content: What the file holds.
        model: The model, branched.

    Returns:
        Our names to tensors.

    Raises:
        InputError: If the checkpoint is not recognised, is merged, is not whole, belongs to another network, or
            holds what is not finite.
    """
    tensors = unwrap(content, _SOURCE).tensors
    recognised = recognise(tensors, _SOURCE)
    check(
        recognised.form == "branched",
        "a branched checkpoint",
        f"{_SOURCE} of {recognised.naming.title}, which is merged",
        "load it with widefield.load_published",
    )
    own = cast("dict[str, Tensor]", model.state_dict())
    state = recognised.ours(tensors)
    kept = _kept(own, state, recognised)
    expected = {
        name: tensor.shape for name, tensor in own.items() if name not in kept or name in state
    } | _shapes_of_what_timm_adapts(state, model)
    expected |= {name: tensor.shape for name, tensor in state.items() if name.startswith("feature_norms.")}
    check_whole(expected, recognised.naming, tensors, _SOURCE)
    check_types(own, state, recognised.naming.names, _SOURCE)
    check_values(state, recognised.naming.names, _SOURCE)
    if kept:
        logger.warning("%s has no %s for this model: these start new", _SOURCE, ", ".join(sorted(kept)))
    return {name: state[name] if name in state and name not in kept else own[name] for name in own}


def _kept(own: Mapping[str, Tensor], state: Mapping[str, Tensor], recognised: Recognised) -> set[str]:
    """Names of the model's tensors that the checkpoint does not replace."""
    kept: set[str] = set()
    if not recognised.model_kwargs["feature_norms"]:
        kept |= {name for name in own if name.startswith("feature_norms.")}
    if recognised.model_kwargs["num_classes"] == 0:
        kept |= {name for name in own if name in _HEAD}
        if not any(name.startswith("norm.") for name in state):
            kept |= {name for name in own if name.startswith("norm.")}
    # timm drops a head that the configuration says is for other classes by itself.
    return kept | {name for name in _HEAD if name in own and name in state and own[name].shape != state[name].shape}


def _shapes_of_what_timm_adapts(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, torch.Size]:
    config = cast("Mapping[str, Any]", getattr(model, "pretrained_cfg", {}))
    names = [f"{config.get('first_conv')}.weight", *_HEAD]
    return {name: state[name].shape for name in names if name in state}


def check_source(name: str, pretrained: bool, settings: Mapping[str, Any]) -> None:
    """Raise if weights are asked for that timm cannot fetch.

    Args:
        name: The variant.
        pretrained: Whether weights are asked for.
        settings: What the entry point was called with; timm's ``pretrained_cfg`` and ``pretrained_cfg_overlay`` may be
            among it.

    Raises:
        InputError: If the checkpoint has to be downloaded by hand, or nobody published one.
    """
    if not pretrained:
        return
    chosen = {key: settings.get(key) for key in ("pretrained_cfg", "pretrained_cfg_overlay")}
    config = resolve_pretrained_cfg(name, **chosen)
    is_there = any((config.url, config.file, config.state_dict, config.hf_hub_id))
    origin = config.origin_url
    check(
        is_there,
        "a checkpoint that can be fetched",
        f"{name}{f'.{config.tag}' if config.tag else ''}, "
        + (f"which is published for download by hand at {origin}" if origin else "of which nobody published weights"),
        "pass its file with pretrained_cfg_overlay=dict(file=PATH)" if origin else "use pretrained=False",
    )
