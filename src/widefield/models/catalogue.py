"""Our models by name: what there is, and one made ready."""

from __future__ import annotations

import fnmatch
from typing import Any, cast

import timm
from torch import nn

from widefield._core.checks import check_name
from widefield.models import convnext_lk, mobilenetv2_lk, pelk, replknet, slak, unireplknet

FAMILIES = (replknet, slak, pelk, unireplknet, convnext_lk, mobilenetv2_lk)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of our models that match a shell pattern, family by family, small to large."""
    return fnmatch.filter([name for family in FAMILIES for name in family.VARIANTS], pattern)


def create_model(name: str, **model_kwargs: Any) -> nn.Module:
    """Make a model through `timm.create_model`: one of ours, or any other that timm knows.

    Args:
        name: For instance "replknet_31b", or "convnext_tiny", or a source
            with a scheme, such as "hf-hub:timm/convnext_tiny.fb_in1k".
        **model_kwargs: Passed on to timm; what neither timm nor the model knows is refused there. Where one is None for
            a model of ours, it is None there too; `timm.create_model` would put the variant's own value in its place.

    Returns:
        The model, in training mode.

    Raises:
        InputError: If neither we nor timm have a model of that name; the nearest names are given.
    """
    base, _, tag = name.partition(".")
    if ":" not in name and not timm.is_model(base):
        check_name(base, [*list_models(), *timm.list_models()], "model")
    if base in list_models() and None in model_kwargs.values():
        pretrained = bool(model_kwargs.pop("pretrained", False))
        source = {"pretrained_cfg": tag} if tag else {}
        return cast("nn.Module", timm.model_entrypoint(base)(pretrained=pretrained, **{**source, **model_kwargs}))
    return timm.create_model(name, **model_kwargs)
