"""The section of a report's page on the weights of large kernels."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from widefield.analysis.report_html import by, caption, figure, legend, percent, section, tiles
from widefield.analysis.report_image import levels, map_image

if TYPE_CHECKING:
    from widefield.analysis.kernel_weights import KernelWeights
    from widefield.analysis.report import Report, Subject


def kernels(report: Report) -> str:
    """Return the maps of the large kernels of each network; nothing where there are none."""
    known = [subject for subject in report.subjects if subject.kernels]
    if not known:
        return ""
    without = [subject.name for subject in report.subjects if not subject.kernels]
    return section(
        "kernels",
        "Large kernels",
        caption(
            "Where the weights of the kernels that act lie: the sum of |w| over the channels of a layer, divided by "
            "its largest tap. Centre: the share that the 3 × 3 taps in the middle hold. 90 % in: the smallest centred "
            "square that holds as much. Weights say what a layer can use, not what a network sees."
        ),
        legend(("0", "0.25", "0.5", "0.75", "1"), "sum of |w|, relative to the largest tap of the layer"),
        *map(_layers, known),
        caption(f"Without large kernels: {', '.join(without)}.") if without else "",
    )


def _layers(subject: Subject) -> str:
    figures = (_figure(subject.name, layer) for layer in subject.kernels)
    return f"<h3>{escape(subject.name)}</h3>\n{tiles(figures, are_small=True)}"


def _figure(model: str, layer: KernelWeights) -> str:
    size, (height, width), inner = by(layer.kernel_size), layer.kernel_size, layer.effective_size(0.9)
    return figure(
        map_image(levels(layer.map)),
        f"Weights of {layer.name} of {model}, {size} taps",
        layer.name,
        (f"{size}, centre {percent(layer.central_share)}", f"90 % in {by((inner, inner))}"),
        ratio=width / height,
        is_pixelated=True,
    )
