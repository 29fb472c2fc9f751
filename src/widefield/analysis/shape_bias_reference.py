"""Published shape biases, to compare with."""

from __future__ import annotations

from dataclasses import dataclass

_PAPER = "Geirhos et al., ICLR 2019 (arXiv 1811.12231), page 5"
_README = "README of rgeirhos/texture-vs-shape"


@dataclass(frozen=True, kw_only=True)
class PublishedBias:
    """A published share of shape among decisions for shape or texture, on all 1,200 conflict images."""

    name: str
    """Who decided."""
    shape_fraction: float
    """From 0, texture alone, to 1, shape alone."""
    source: str
    """Where it is published."""


HUMANS = PublishedBias(name="humans", shape_fraction=0.959, source=_PAPER)
"""Of single categories the paper has points in a figure, and no numbers."""

NETWORKS = (
    PublishedBias(name="ResNet-50", shape_fraction=0.2139, source=_README),
    PublishedBias(name="ResNet-50, Stylized-ImageNet", shape_fraction=0.8137, source=_README),
    PublishedBias(name="ResNet-50, ImageNet and Stylized-ImageNet", shape_fraction=0.3465, source=_README),
    PublishedBias(name="ResNet-50, the same, then ImageNet", shape_fraction=0.2054, source=_README),
    PublishedBias(name="AlexNet", shape_fraction=0.253, source=_README),
    PublishedBias(name="VGG-16", shape_fraction=0.092, source=_README),
)
"""Networks of torchvision, or trained with it; those of ResNet-50 by the mean probability of a category's classes.

The paper itself has 22.1 % for ResNet-50, by another aggregation of the class probabilities.
"""
