"""A page of kernels: one tile for each layer, all on one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from widefield._core.checks import check
from widefield._core.files import write_atomically
from widefield._core.plain_text import figure_text
from widefield.analysis.kernel_weights import KernelWeights

COLUMNS = 6

Scale = Literal["linear", "log"]


def draw_kernel_weights(
    path: Path, layers: Sequence[KernelWeights], *, title: str = "", scale: Scale = "linear"
) -> None:
    """Draw the maps of layers, each as a share of its own largest value.

    Args:
        path: PNG file to write.
        layers: At least one.
        title: Above the page.
        scale: Of the colours; "log" goes down to a thousandth, for kernels whose centre outshines the rest.

    Raises:
        InputError: If there is no layer.
    """
    check(bool(layers), "at least one layer to draw", "none", "choose layers with large kernels")
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    # Inches: a tile with two lines of title above it, and the page's own title and colour bar.
    figure = Figure(figsize=(1.7 * max(columns, 3), 2.05 * rows + 1.0), layout="constrained")
    tiles = figure.subplots(rows, columns, squeeze=False).flatten()
    norm = LogNorm(1e-3, 1, clip=True) if scale == "log" else Normalize(0, 1)
    image = None
    for tile, layer in zip(tiles, layers, strict=False):
        image = tile.imshow(layer.map.numpy(), norm=norm, cmap="viridis", interpolation="nearest")
        height, width = layer.kernel_size
        share = f"{100 * layer.central_share:.2g} %"
        tile.set_title(f"{figure_text(_short(layer.name))}\n{height}x{width}, centre {share}", fontsize=6.5)
    for tile in tiles:
        tile.set_axis_off()
    assert image is not None
    bar = figure.colorbar(image, ax=list(tiles), orientation="horizontal", fraction=0.04, aspect=40)
    bar.set_label(
        f"sum of |w| over channels, of the layer's largest ({scale} scale); centre: share of the 3x3 in the middle",
        fontsize=7,
    )
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(figure_text(title), fontsize=10, wrap=True)
    metadata = {"Software": ""}
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=130, metadata=metadata))


def _short(name: str, limit: int = 31) -> str:
    """Return the end of a long name, whole parts of it."""
    parts = name.split(".")
    while len(parts) > 1 and len(".".join(parts)) > limit:
        parts = parts[1:]
    short = ".".join(parts)
    return short if short == name else f"...{short}"
