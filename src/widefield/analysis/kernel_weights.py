"""Where the weights of large kernels lie: how much in the centre, on the cross, and out to which distance."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from widefield._core.checks import check, check_name
from widefield._core.files import write_text_atomically
from widefield.analysis.large_kernels import LargeKernel, Pair, large_kernels, parts, spacing

TOLERANCE = 1e-3
"""Largest difference, relative to the largest output, of a module from the convolution with its impulse response."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelWeights:
    """The kernels of one layer, all channels together.

    Shares are of the sum of |w| over all taps and channels; all are 0 where every weight is.
    """

    name: str
    """Of the layer."""
    kernel_size: Pair
    """Rows and columns, gaps of dilation included."""
    channels: int
    """Output channels."""
    is_depthwise: bool
    """Whether each channel has one kernel of its own."""
    map: Tensor
    """Sum of |w| over channels (K_h, K_w), over its largest: 1 at the tap with the most (RepLKNet, appendix D)."""
    radial_energy: tuple[float, ...]
    """Share of the sum of w^2 by the distance from the centre, rounded to whole pixels: 0, 1, 2, ..."""

    @property
    def central_share(self) -> float:
        """Share of the 3 x 3 taps in the centre."""
        rows, columns = self._distances()
        return self._share((rows <= 1)[:, None] & (columns <= 1)[None])

    @property
    def skeleton_share(self) -> float:
        """Share of the central row and column, the skeleton of ACNet (Ding et al., 2019); of two each in even sizes."""
        rows, columns = self._distances()
        return self._share((rows < 1)[:, None] | (columns < 1)[None])

    def effective_size(self, share: float = 0.9) -> int:
        """Return the side of the smallest centred square that holds a share of the sum of |w|.

        Args:
            share: From 0 to 1.

        Returns:
            Pixels, odd in a kernel of odd size; 0 if every weight is 0.

        Raises:
            InputError: If the share is not between 0 and 1.
        """
        check(0 < share <= 1, "a share above 0 and up to 1", f"{share}", "give, for instance, 0.9")
        rows, columns = self._distances()
        largest = max(self.kernel_size)
        for side in range(2 - largest % 2, largest + 1, 2):
            reach = (side - 1) / 2
            # A square that holds everything is not to be missed for the last digit of the sum.
            if self._share((rows <= reach)[:, None] & (columns <= reach)[None]) >= share * (1 - 1e-12):
                return side
        return 0

    def to_plain(self) -> dict[str, Any]:
        """Return all figures as plain values for a JSON file, the map as rows of numbers."""
        return {
            "name": self.name,
            "kernel_size": list(self.kernel_size),
            "channels": self.channels,
            "is_depthwise": self.is_depthwise,
            "central_share": self.central_share,
            "skeleton_share": self.skeleton_share,
            "effective_size_90": self.effective_size(0.9),
            "effective_size_99": self.effective_size(0.99),
            "radial_energy": list(self.radial_energy),
            "map": self.map.tolist(),
        }

    def _distances(self) -> tuple[Tensor, Tensor]:
        height, width = (_distances(size) for size in self.kernel_size)
        return height, width

    def _share(self, taps: Tensor) -> float:
        total = float(self.map.sum())
        return float(self.map[taps].sum()) / total if total else 0.0


@torch.no_grad()
def measure_kernel_weights(
    model: nn.Module,
    *,
    min_size: int = 7,
    layers: Sequence[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> list[KernelWeights]:
    """Measure the large kernels of any network.

    Of a module with parallel branches it is the one kernel that they add up to, whatever their form: it is the module's
    response to an impulse, and counts only if the convolution with it gives what the module does with noise. Norms
    within such a module are part of the kernel; those outside of it are not (`widefield.merge` the network first if
    they shall be). Other convolutions are taken as they are, zeros between dilated taps included.

    Args:
        model: Any module; nothing of it changes.
        min_size: Smallest kernel to look at, in pixels on its longer side.
        layers: Names of layers, or of modules that hold some; all if not given.
        progress: Called with the number of layers that are done and of all.

    Returns:
        One entry for each layer, in the order of the model.

    Raises:
        InputError: If there is no such kernel or layer, or weights are missing or not finite.

    Source: RepLKNet (Ding et al., CVPR 2022), appendix D, for the map.
    """
    found = _chosen(model, min_size, layers)
    results: list[KernelWeights] = []
    for index, layer in enumerate(found):
        check(
            not any(parameter.is_meta for parameter in layer.module.parameters()),
            "a network with values",
            "one on the meta device",
            "make it on another device",
        )
        results += [_measure(part, weight) for part, weight in _weights(layer, min_size)]
        if progress is not None:
            progress(index + 1, len(found))
    return results


def save_kernel_weights(path: Path, layers: Sequence[KernelWeights]) -> None:
    """Write the figures of layers as JSON, in the form of `KernelWeights.to_plain`."""
    write_text_atomically(path, json.dumps([layer.to_plain() for layer in layers], indent=1) + "\n")


def _chosen(model: nn.Module, min_size: int, names: Sequence[str] | None) -> list[LargeKernel]:
    found = large_kernels(model, min_size)
    if not found:
        largest = max((max(layer.kernel_size) for layer in large_kernels(model, 1)), default=0)
        check(
            False,
            f"a network with a kernel of {min_size} or more",
            f"{type(model).__name__}, whose largest is {largest}" if largest else f"{type(model).__name__} without any",
            "lower the smallest size" if largest else "use a network of two-dimensional convolutions",
        )
    if names is None:
        return found
    chosen: list[LargeKernel] = []
    for name in names:
        below = [layer for layer in found if f"{layer.name}.".startswith(f"{name}.")]
        if not below:
            check_name(name, [layer.name for layer in found], "layer with a large kernel")
        chosen += below
    return [layer for layer in found if layer in chosen]


def _weights(layer: LargeKernel, min_size: int) -> list[tuple[LargeKernel, Tensor]]:
    """Return the kernels (C_out, C_in / groups, K_h, K_w) of a layer, or of the convolutions in it, in float64."""
    if isinstance(layer.module, nn.Conv2d):
        return [(layer, _with_gaps(layer.module))]
    weight = _impulse_response(layer)
    if weight is not None:
        return [(layer, weight)]
    return [pair for part in parts(layer, min_size) for pair in _weights(part, min_size)]


def _with_gaps(conv: nn.Conv2d) -> Tensor:
    weight, (rows, columns) = conv.weight.double(), spacing(conv.dilation)
    height, width = ((count - 1) * gap + 1 for count, gap in zip(weight.shape[2:], (rows, columns), strict=True))
    spread = weight.new_zeros(*weight.shape[:2], height, width)
    spread[..., ::rows, ::columns] = weight
    return spread


def _impulse_response(layer: LargeKernel) -> Tensor | None:
    """Return the kernel (C, 1, K_h, K_w) of a "same" convolution that does what the module does, if there is one."""
    convs = (part for part in layer.module.modules() if isinstance(part, nn.Conv2d))
    channels = next((conv.in_channels for conv in convs), getattr(layer.module, "channels", None))
    height, width = layer.kernel_size
    if channels is None or height % 2 == 0 or width % 2 == 0:
        return None
    unit = copy.deepcopy(layer.module).float().eval()
    device = next(unit.parameters()).device
    impulse = torch.zeros(1, channels, height, width, device=device)
    impulse[..., height // 2, width // 2] = 1
    noise = torch.randn(1, channels, height + 2, width + 4, generator=torch.Generator().manual_seed(0)).to(device)
    try:
        # The response to an impulse is the kernel back to front: the one that a convolution in the strict sense has.
        response, actual = (unit(x).double() - unit(torch.zeros_like(x)).double() for x in (impulse, noise))
    except Exception:
        # Modules that only hold others, or that take something else than one image.
        return None
    if response.shape != impulse.shape or actual.shape != noise.shape:
        return None
    difference = (actual - _convolve(noise.double(), response)).abs().max()
    if not bool(difference <= TOLERANCE * actual.abs().max()):
        return None
    return response.flip(2, 3).transpose(0, 1)


def _convolve(image: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (1, C, H, W) with (1, C, K_h, K_w) in the strict sense; the middle (1, C, H, W), in Fourier space."""
    size = [a + b - 1 for a, b in zip(image.shape[2:], kernel.shape[2:], strict=True)]
    whole = torch.fft.irfft2(torch.fft.rfft2(image, s=size) * torch.fft.rfft2(kernel, s=size), s=size)
    top, left = (count // 2 for count in kernel.shape[2:])
    return whole[..., top : top + image.shape[2], left : left + image.shape[3]]


def _measure(layer: LargeKernel, weight: Tensor) -> KernelWeights:
    name = layer.name or type(layer.module).__name__
    check(
        bool(weight.isfinite().all()),
        "kernels of finite numbers",
        f"some that are not in {name}",
        "look into the training that made them",
    )
    magnitude, energy = weight.abs().sum((0, 1)).cpu(), weight.square().sum((0, 1)).cpu()
    height, width = weight.shape[2:]
    rows, columns = _distances(height), _distances(width)
    ring = (rows.square()[:, None] + columns.square()[None]).sqrt().round().long()
    radial = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add(0, ring.flatten(), energy.flatten())
    return KernelWeights(
        name=name,
        kernel_size=(height, width),
        channels=weight.shape[0],
        is_depthwise=layer.is_depthwise,
        map=magnitude / magnitude.max().clamp_min(torch.finfo(torch.float64).tiny),
        radial_energy=tuple((radial / radial.sum().clamp_min(torch.finfo(torch.float64).tiny)).tolist()),
    )


def _distances(size: int) -> Tensor:
    """Return how far each tap of a row lies from its middle, in pixels: halves in even sizes."""
    return (torch.arange(size, dtype=torch.float64) - (size - 1) / 2).abs()
