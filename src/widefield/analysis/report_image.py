"""Maps and photos as ``data:`` addresses, so that a page holds all that it shows."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

COLOUR_MAP = "inferno"


def colours() -> np.ndarray:
    """Return the (256, 3) uint8 colours of the levels 0 to 255."""
    from matplotlib import colormaps

    return (255 * colormaps[COLOUR_MAP](np.arange(256))[:, :3]).round().astype(np.uint8)


def levels(values: Tensor) -> Tensor:
    """Return a map (H, W) that is nowhere negative as uint8, 255 where it is largest."""
    largest = values.max().clamp_min(torch.finfo(values.dtype).tiny)
    return (255 * values / largest).round().to(torch.uint8)


def map_image(shown: Tensor, *, is_overlay: bool = False) -> str:
    """Colour a map.

    Args:
        shown: (H, W) uint8.
        is_overlay: Whether low levels are see-through, so that what lies below can be recognised.

    Returns:
        A PNG as a data: address.
    """
    from PIL import Image

    height, width = shown.shape
    image = Image.frombytes("P", (width, height), shown.numpy().tobytes())
    image.putpalette(colours().tobytes())
    # Full strength is reached at half the scale.
    opacity = bytes(min(255, 2 * level) for level in range(256))
    return _address(image, "png", optimize=True, **({"transparency": opacity} if is_overlay else {}))


def photo_image(photo: Image.Image) -> str:
    """Return a photo as a data: address (JPEG)."""
    return _address(photo.convert("RGB"), "jpeg", quality=85, optimize=True)


def gradient() -> str:
    """Return the colour scale as a CSS gradient, weakest first."""
    stops = colours()[np.linspace(0, 255, 17).round().astype(int)]
    return f"linear-gradient(to right, {', '.join(f'rgb({r} {g} {b})' for r, g, b in stops)})"


def _address(image: Image.Image, kind: str, **options: object) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
