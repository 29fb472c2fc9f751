"""A layer's output as a map (N, C, h, w), whatever layout the network keeps it in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from widefield._core.checks import check
from widefield._core.errors import InputError

_MAIN_OUTPUTS = ("out", "last_hidden_state", "logits")
_FIX = "name a layer whose output is one, or pass a function from (model, images) to (N, C, h, w)"


class AmbiguousLayoutError(InputError):
    """A map of which two readings are possible."""


def spatial_map(
    output: object,
    image_size: tuple[int, int],
    *,
    prefix_tokens: int | None = None,
    is_channels_last: bool | None = None,
) -> Tensor:
    """Bring what a layer returned into the layout (N, C, h, w).

    Four dimensions are (N, C, h, w) or (N, h, w, C), whichever reading keeps the aspect ratio of the image to within
    one location. Three are tokens (N, L, C), row by row, on the only grid of that aspect ratio that L allows.

    Args:
        output: A tensor, or a dictionary, tuple or list that holds a single one. Of several in a dictionary, "out",
            "last_hidden_state" or "logits" is taken.
        image_size: (H, W) in pixels of the image that it was computed from.
        prefix_tokens: Class and register tokens before the others, if that is known; else none or one.
        is_channels_last: Which reading to take where both keep the aspect ratio, if that is known.

    Returns:
        The map, a view where possible.

    Raises:
        InputError: If it is no map; an `AmbiguousLayoutError` if it could be read in two ways.
    """
    tensor = one_tensor(output)
    if tensor.dim() == 3:
        return _from_tokens(tensor, image_size, prefix_tokens)
    check(tensor.dim() == 4, "a map (N, C, h, w)", f"an output of shape {tuple(tensor.shape)}", _FIX)
    _, first, second, third = tensor.shape
    readings = [_keeps_aspect((second, third), image_size), _keeps_aspect((first, second), image_size)]
    check(any(readings), *_no_map(tensor, image_size))
    if not all(readings):
        is_channels_last = readings[1]
    if is_channels_last is None:
        raise AmbiguousLayoutError(
            "a map whose channels can be told from its rows and columns",
            f"an output of shape {tuple(tensor.shape)}",
            "use images of another shape, or pass a function from (model, images) to (N, C, h, w)",
        )
    return tensor.permute(0, 3, 1, 2) if is_channels_last else tensor


def one_tensor(output: object) -> Tensor:
    """Return the tensor that a layer returned, or the one in the dictionary, tuple or list that it returned.

    Raises:
        InputError: If there is none, or which of several is meant is not known.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        named = cast("Mapping[Any, object]", output)
        values = next(([named[key]] for key in _MAIN_OUTPUTS if key in named), list(named.values()))
    else:
        values = list(cast("Sequence[object]", output)) if isinstance(output, list | tuple) else []
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) != 1:
        raise InputError("a layer that returns one tensor", f"{type(output).__name__} of {len(tensors)}", _FIX)
    return tensors[0]


def _from_tokens(tokens: Tensor, image_size: tuple[int, int], prefix_tokens: int | None) -> Tensor:
    height, width = image_size
    for prefix in (0, 1) if prefix_tokens is None else (prefix_tokens, 0):
        count = tokens.shape[1] - prefix
        rows = round(math.sqrt(max(count, 0) * height / width))
        grid = (rows, count // rows) if rows else (0, 0)
        if grid[0] * grid[1] == count and _keeps_aspect(grid, image_size):
            return tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
    raise InputError(*_no_map(tokens, image_size))


def _keeps_aspect(grid: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether a grid of more than one location could be that of the image: rounding moves it by less than one."""
    (rows, columns), (height, width) = grid, image_size
    return rows * columns > 1 and abs(rows * width - columns * height) < max(height, width)


def _no_map(tensor: Tensor, image_size: tuple[int, int]) -> tuple[str, str, str]:
    expected = f"a map of several locations in the aspect ratio of the image, {image_size[0]} x {image_size[1]} px"
    return expected, f"an output of shape {tuple(tensor.shape)}", _FIX
