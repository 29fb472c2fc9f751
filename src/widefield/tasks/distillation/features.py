"""Logits and feature maps of a classifier in one pass, through timm's interface."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from widefield._core.checks import check


class Answer(NamedTuple):
    """What a classifier says of a batch."""

    logits: Tensor
    """(N, classes)."""
    features: tuple[Tensor, ...] = ()
    """(N, C, H, W) for each stride that was asked for."""


def stages_at(model: nn.Module, reductions: Sequence[int]) -> list[int]:
    """Return, for each stride, the index of the last feature map that the network has at it.

    Raises:
        InputError: If the network has no such map, or does not give its features as timm's classifiers do.
    """
    name = type(model).__name__
    check(
        all(hasattr(model, part) for part in ("feature_info", "forward_intermediates", "forward_head")),
        "a network with timm's feature_info, forward_intermediates and forward_head for the method feature",
        name,
        "use the method kd or nkd, which need its outputs only",
    )
    info = cast("Any", model).feature_info
    entries = cast("list[dict[str, Any]]", info if isinstance(info, list) else list(info.get_dicts()))
    known = {int(entry["reduction"]): index for index, entry in enumerate(entries)}
    missing = [reduction for reduction in reductions if reduction not in known]
    check(
        not missing,
        f"distillation.reductions among those of {name}: {', '.join(map(str, known))}",
        ", ".join(map(str, missing)),
        "name strides that student and teacher both have",
    )
    return [known[reduction] for reduction in reductions]


def answer(model: nn.Module, images: Tensor, stages: Sequence[int]) -> Answer:
    """Run a classifier and keep some of its feature maps.

    Args:
        model: A classifier; one with timm's interface, if there are `stages`.
        images: (N, 3, H, W).
        stages: Indices of the feature maps.
    """
    if not stages:
        return Answer(cast("Tensor", model(images)))
    network = cast("Any", model)
    final, features = network.forward_intermediates(images, indices=sorted(stages), output_fmt="NCHW")
    by_stage = dict(zip(sorted(stages), features, strict=True))
    return Answer(network.forward_head(final), tuple(by_stage[stage] for stage in stages))


def feature_shapes(model: nn.Module, stages: Sequence[int], image_size: int) -> list[tuple[int, int, int]]:
    """Return channels, height and width of feature maps, found without computing them.

    Args:
        model: A classifier with timm's interface; it is left as it is.
        stages: Indices of the feature maps.
        image_size: Height and width of the images.
    """
    with torch.device("meta"):
        probe = copy.deepcopy(model).to("meta").eval()
        features = answer(probe, torch.empty(1, 3, image_size, image_size), stages).features
    return [(int(x.shape[1]), int(x.shape[2]), int(x.shape[3])) for x in features]
