"""What is timed: layers of published networks on the maps of their tasks, and problems made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from widefield.bench.variants import VARIANTS, Variant
from widefield.ops.depthwise_conv.problem import Layout, Problem

IMAGE_SIZES = (224, 384)
"""Sides of the square images on which the networks were published."""

DENSE_IMAGES = ((800, 1216), (512, 512))
"""(H, W) of images for detection (a padded COCO image) and segmentation (a crop of ADE20K)."""

DENSE_VARIANTS = ("RepLKNet-31B", "SLaK-T", "PeLK-B-101", "UniRepLKNet-S", "ConvNeXt-T")
"""One network of each family, for the maps of dense prediction."""

SMALL_KERNEL_SIZES = (3, 5, 7)

MOST_ELEMENTS = 2**26
"""Values in the largest input of `grid`: 256 MiB in float32."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One depthwise layer with "same" padding (K // 2 on each side)."""

    name: str
    """Network, place in it, and image size."""
    channels: int
    height: int
    width: int
    kernel_size: tuple[int, int]
    stride: int = 1
    source: str
    """Where the sizes were published."""

    def problem(
        self, batch: int, dtype: torch.dtype = torch.float32, device: str = "cpu", layout: Layout = "contiguous"
    ) -> Problem:
        """Return the problem of this layer for `batch` images."""
        return Problem(
            batch=batch,
            channels=self.channels,
            height=self.height,
            width=self.width,
            kernel_size=self.kernel_size,
            stride=(self.stride, self.stride),
            padding=(self.kernel_size[0] // 2, self.kernel_size[1] // 2),
            dtype=dtype,
            device_type=device,
            layout=layout,
        )


def layers_of(variant: Variant, image_height: int, image_width: int) -> list[Layer]:
    """Return the depthwise layers of a network on an image of that many pixels, stem first.

    Args:
        variant: The network.
        image_height: A multiple of 32.
        image_width: A multiple of 32.

    Returns:
        One layer for each different shape.
    """
    layers: list[Layer] = []

    def add(place: str, channels: int, reduction: int, kernel_size: tuple[int, int], stride: int = 1) -> None:
        layer = Layer(
            name=f"{variant.name} {place}, {image_height}x{image_width}",
            channels=channels,
            height=image_height // reduction,
            width=image_width // reduction,
            kernel_size=kernel_size,
            stride=stride,
            source=variant.source,
        )
        layers.append(layer)

    if variant.small_channels:
        add("stem", variant.small_channels[0], 2, (3, 3))
        add("stem", variant.small_channels[0], 2, (3, 3), stride=2)
    for stage, (channels, kernels) in enumerate(zip(variant.channels, variant.kernels, strict=True)):
        if variant.small_channels and stage:
            add(f"transition {stage}", variant.small_channels[stage], 2 * 2**stage, (3, 3), stride=2)
        for kernel_size in kernels:
            add(f"stage {stage + 1}", channels, 4 * 2**stage, kernel_size)
    return layers


def published_layers(image_sizes: Sequence[int] = IMAGE_SIZES) -> list[Layer]:
    """Return every depthwise layer of every published network at each of the image sizes."""
    return [layer for size in image_sizes for variant in VARIANTS for layer in layers_of(variant, size, size)]


def dense_prediction_layers() -> list[Layer]:
    """Return the layers on the maps of detection and segmentation, up to 200 x 304."""
    variants = [variant for variant in VARIANTS if variant.name in DENSE_VARIANTS]
    return [layer for size in DENSE_IMAGES for variant in variants for layer in layers_of(variant, *size)]


def small_kernel_layers() -> list[Layer]:
    """Return 3x3, 5x5 and 7x7 on the four maps of a 224-pixel image: where PyTorch is at its best."""
    maps = ((96, 56), (192, 28), (384, 14), (768, 7))
    return [
        Layer(
            name=f"{kernel_size}x{kernel_size} stage {stage + 1}, 224x224",
            channels=channels,
            height=size,
            width=size,
            kernel_size=(kernel_size, kernel_size),
            source="widths of ConvNeXt-T",
        )
        for kernel_size in SMALL_KERNEL_SIZES
        for stage, (channels, size) in enumerate(maps)
    ]


def kernel_size_layers(
    channels: int, height: int, width: int, kernel_sizes: Sequence[int], source: str = "a sweep"
) -> list[Layer]:
    """Return one map with kernels K x K of each size."""
    return [
        Layer(
            name=f"C{channels} {height}x{width} K{size}",
            channels=channels,
            height=height,
            width=width,
            kernel_size=(size, size),
            source=source,
        )
        for size in kernel_sizes
    ]


def grid(
    batches: Sequence[int] = (1, 8, 32), *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Problem]:
    """Return every problem that the dispatcher is judged by, each once, small to large.

    Args:
        batches: Numbers of images.
        dtype: Of input and weight.
        device: Device type.

    Returns:
        The layers of all published networks, of dense prediction and the small kernels, for each batch whose input has
        at most `MOST_ELEMENTS` values.
    """
    layers = [*small_kernel_layers(), *published_layers(), *dense_prediction_layers()]
    problems = [layer.problem(batch, dtype, device) for layer in layers for batch in batches]
    return sorted((p for p in _once(problems) if _elements(p) <= MOST_ELEMENTS), key=lambda p: (p.macs, str(p)))


def _once(problems: Iterable[Problem]) -> list[Problem]:
    return list(dict.fromkeys(problems))


def _elements(problem: Problem) -> int:
    return problem.batch * problem.channels * problem.height * problem.width
