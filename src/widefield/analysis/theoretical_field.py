"""The theoretical receptive field of any network: every pixel that can reach a location, however little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from widefield._core.checks import check
from widefield._core.errors import InputError
from widefield.analysis.contribution import Location, frozen
from widefield.analysis.features import Features, Layer

_LONGEST = 1 << 15
"""Pixels of the longest image that is tried in order to see the end of a field."""

_WIDTHS = (1, 32, 128)
"""Pixels across such an image; the first that the network takes."""


@dataclass(frozen=True, kw_only=True)
class TheoreticalField:
    """The box of pixels that can reach a location."""

    layer: str
    location: Location
    output_size: tuple[int, int]
    box: tuple[int, int, int, int]
    """First row, first column, last row and last column within the image; the last ones belong to it."""
    size_px: tuple[int | None, int | None]
    """Height and width where no border of an image cuts it off; None if it has no end, or none could be seen."""
    stride_px: tuple[int | None, int | None]
    """How far it moves from a location to the next one, down and across; None as in `size_px`."""


def theoretical_receptive_field(
    model: nn.Module,
    image_size: tuple[int, int],
    *,
    layer: Layer = None,
    location: Location | None = None,
    channels: int = 3,
) -> TheoreticalField:
    """Find the pixels that can reach a location, whatever the weights.

    Rows or columns of the image are made NaN, which no weight and no activation takes away, and a search by halves
    finds the first and the last that turn the location into NaN. Convolutions are stood in for by the spread of NaN
    over their windows, so fast algorithms that mix all pixels, and weights of zero, change nothing. Global operations
    (squeeze and excitation, attention) reach everywhere, and a mask that adds a finite number hides nothing.
    The size without borders is seen in images that are long in one direction and narrow in the other.

    Args:
        model: Any network on images, on any device.
        image_size: (H, W) in pixels.
        layer: Whose output to look at: see `Features`.
        location: In the feature map; the centre (h // 2, w // 2) if not given.
        channels: Of the image.

    Returns:
        The box within the image, and the size that it would have without borders.

    Raises:
        InputError: If the location is outside the map, nothing reaches it, or as `Features`.
    """
    features = Features(model, layer)
    with frozen(model), torch.no_grad():
        probe = _Probe(features, channels, image_size)
        rows, columns = probe.output_size
        row, column = (rows // 2, columns // 2) if location is None else location
        check(
            0 <= row < rows and 0 <= column < columns,
            f"a location in a map of {rows} x {columns}, counted from 0",
            f"({row}, {column})",
            "choose one inside",
        )
        top, bottom = probe.ends(0, (row, column))
        left, right = probe.ends(1, (row, column))
        sizes = [_unbounded(features, channels, axis, length) for axis, length in enumerate(image_size)]
    return TheoreticalField(
        layer=features.layer,
        location=(row, column),
        output_size=(rows, columns),
        box=(top, left, bottom, right),
        size_px=(sizes[0][0], sizes[1][0]),
        stride_px=(sizes[0][1], sizes[1][1]),
    )


class _Probe:
    """Images of one size, zero but for the rows or columns that are NaN."""

    def __init__(self, features: Features, channels: int, size: tuple[int, int]) -> None:
        self._features = features
        self._size = size
        like = next((p for p in features.model.parameters() if p.is_floating_point()), torch.empty(0))
        self._clean = torch.zeros((1, channels, *size), device=like.device, dtype=like.dtype)
        output = self._run(self._clean)
        check(
            not bool(output.isnan().any()),
            "a network that is finite on an image of zeros",
            "NaN",
            "look for weights that are not finite",
        )
        self.output_size = (output.shape[-2], output.shape[-1])

    def ends(self, axis: int, location: Location) -> tuple[int, int]:
        """Return the first and the last row (axis 0) or column (axis 1) that reach a location."""
        length = self._size[axis]
        check(
            bool(self.reached(axis, 0, length)[location]),
            f"a location of {self._features.layer!r} that the image reaches",
            f"{location}, which it does not",
            "choose a layer that depends on the image",
        )
        return self.first(axis, location, 0, length), self.last(axis, location, 0, length)

    def first(self, axis: int, location: Location, low: int, high: int) -> int:
        """Return the first row or column that reaches a location, which is known to be in [low, high)."""
        return _last_true(lambda stop: not self.reached(axis, 0, stop)[location], low, high)

    def last(self, axis: int, location: Location, low: int, high: int) -> int:
        """Return the last row or column that reaches a location, which is known to be in [low, high)."""
        length = self._size[axis]
        return _last_true(lambda start: bool(self.reached(axis, start, length)[location]), low, high)

    def reached(self, axis: int, start: int, stop: int) -> Tensor:
        """Return which locations (h, w) the rows or columns from `start` to before `stop` reach."""
        image = self._clean.clone()
        image.narrow(2 + axis, start, stop - start).fill_(float("nan"))
        return self._run(image)[0].isnan().any(0).cpu()

    def _run(self, image: Tensor) -> Tensor:
        with _SpreadOfNaN():
            return self._features(image)


def _last_true(is_true: Callable[[int], bool], low: int, high: int) -> int:
    """Return the largest number below `high` for which a condition holds that holds at `low` and then fails once."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_true(middle) else (low, middle)
    return low


def _unbounded(features: Features, channels: int, axis: int, length: int) -> tuple[int | None, int | None]:
    """Size and stride along an axis, from an image so long that no border is in the way."""
    long = length
    while (long := 4 * long) <= _LONGEST:
        probe = _long_probe(features, channels, axis, long)
        if probe is None:
            break
        middle, count = long // 2, probe.output_size[axis]
        across = probe.output_size[1 - axis] // 2

        # The last location that the image up to the middle reaches, and the first that the rest of it reaches.
        before = probe.reached(axis, 0, middle + 1).select(1 - axis, across).nonzero()
        after = probe.reached(axis, middle, long).select(1 - axis, across).nonzero()
        if not len(before) or not len(after) or int(before[-1]) >= count - 1 or int(after[0]) == 0:
            continue
        upper, lower = int(before[-1]), int(after[0])
        window = min(4 * -(-long // count), middle)
        first = probe.first(axis, _at(axis, upper, across), middle - window, middle + 1)
        stride = probe.first(axis, _at(axis, upper + 1, across), middle, middle + window) - first
        last = probe.last(axis, _at(axis, lower, across), middle, middle + window)
        return last - first + stride * (upper - lower) + 1, stride
    return None, None


def _at(axis: int, index: int, across: int) -> Location:
    return (index, across) if axis == 0 else (across, index)


def _long_probe(features: Features, channels: int, axis: int, length: int) -> _Probe | None:
    for width in _WIDTHS:
        try:
            return _Probe(features, channels, (length, width) if axis == 0 else (width, length))
        except InputError:
            continue
    return None


class _SpreadOfNaN(TorchDispatchMode):
    """Convolutions return zeros, and NaN wherever one of a group's inputs in the window is NaN."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        match func._schema.name:
            case "aten::convolution" if args[0].dim() == 4 and not args[6]:
                x, weight, _, stride, padding, dilation, _, _, groups = args
                return _spread(x, weight.shape[0], weight.shape[2:], stride, padding, dilation, groups)
            case "aten::addmm" if not kwargs and not args[2].isnan().any():
                found = args[1].isnan().any(1, keepdim=True)
                return torch.where(found, float("nan"), args[0].new_zeros(())).expand(-1, args[2].shape[1]).contiguous()
            case "widefield::depthwise_conv_forward":
                x, weight, _, stride, padding, dilation, *_ = args
                return _spread(x, weight.shape[0], weight.shape[2:], stride, padding, dilation, weight.shape[0])
            case "widefield::peripheral_conv_forward":
                x, cells, _, rows, columns, *_ = args
                kernel = (sum(rows), sum(columns))
                padding = (kernel[0] // 2, kernel[1] // 2)
                return _spread(x, cells.shape[0], kernel, (1, 1), padding, (1, 1), cells.shape[0])
        return func(*args, **(kwargs or {}))


def _spread(x: Tensor, channels: int, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    found = x.isnan().unflatten(1, (groups, -1)).any(2).to(x.dtype)
    if bool((found == found[:, :1]).all()):
        found = found[:, :1]
    found = F.pad(found, (padding[1], padding[1], padding[0], padding[0]))
    # A window is a rectangle, so its rows and its columns can follow one another.
    found = F.max_pool2d(found, (kernel[0], 1), (stride[0], 1), dilation=(dilation[0], 1))
    found = F.max_pool2d(found, (1, kernel[1]), (1, stride[1]), dilation=(1, dilation[1]))
    if found.shape[1] > 1:
        found = found.repeat_interleave(channels // groups, 1)
    nothing = torch.zeros((), dtype=x.dtype, device=x.device)
    return torch.where(found > 0, float("nan"), nothing).expand(-1, channels, -1, -1).contiguous()
