"""What each pixel of one image contributes to the output of a feature map at a location."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from widefield._core.checks import check
from widefield.analysis.features import Features

Location = tuple[int, int]
"""Row and column in a feature map, from 0."""


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """The contribution maps of one image."""

    maps: Tensor
    """(locations, H, W) float64 on the CPU; not finite where the gradient is not."""
    locations: tuple[Location, ...]
    output_size: tuple[int, int]
    """(h, w) of the feature map."""


def contribution(features: Features, image: Tensor, locations: Sequence[Location] | None = None) -> Contribution:
    """Compute the contribution maps of one image: one forward pass, and one backward pass for each location.

    The score of a location is the sum over channels of the positive outputs there; a pixel contributes the sum over its
    channels of the score's positive derivatives.

    Args:
        features: From the image to a map (1, C', h, w).
        image: (1, C, H, W), normalised as the network wants it.
        locations: In the feature map; the centre (h // 2, w // 2) if not given.

    Returns:
        A map for each location.

    Raises:
        InputError: If a location is outside the map, the map does not depend on the image, or as `Features`.

    Source: RepLKNet, arXiv 2203.06717, and its published code, which looks at the centre only.
    """
    with torch.enable_grad():
        pixels = image.detach().clone().requires_grad_()
        output = features(pixels)
        height, width = output.shape[-2:]
        chosen = ((height // 2, width // 2),) if locations is None else tuple(locations)
        check(bool(chosen), "at least one location", "none", "name one, as (row, column)")
        for row, column in chosen:
            check(
                0 <= row < height and 0 <= column < width,
                f"locations in a map of {height} x {width}, counted from 0",
                f"({row}, {column})",
                "choose one inside",
            )
        check(
            output.requires_grad,
            "a map that gradients lead from to the image",
            f"{features.layer!r}, from which none do",
            "name a layer that depends on the image, in a network that is not run without gradients",
        )
        maps = []
        for index, (row, column) in enumerate(chosen):
            score = output[:, :, row, column].relu().sum()
            is_last = index == len(chosen) - 1
            (gradient,) = torch.autograd.grad(score, pixels, retain_graph=not is_last)
            maps.append(gradient.relu().double().sum((0, 1)).cpu())
    return Contribution(maps=torch.stack(maps), locations=chosen, output_size=(height, width))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode without gradients for its parameters, and back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    needs = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, need in needs:
            parameter.requires_grad_(need)
