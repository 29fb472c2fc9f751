"""The section of a report's page on what networks cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from widefield.analysis.report_html import breakable, by, caption, cell, percent, section, table

if TYPE_CHECKING:
    from widefield.analysis.cost import Cost
    from widefield.analysis.latency import Latency
    from widefield.analysis.report import Report


def costs(report: Report) -> str:
    """Return parameters, multiply-accumulates, memory and time of each network; nothing where none were counted."""
    known = [(subject.name, subject.cost, subject.latency) for subject in report.subjects if subject.cost is not None]
    if not known:
        return ""
    is_timed = any(latency is not None for _, _, latency in known)
    headings = (
        cell("model"),
        cell("parameters", "million"),
        cell("not zero", "million"),
        cell("MACs", "billion"),
        cell("large kernels", "% of MACs"),
        cell("large kernels", "% of parameters"),
        cell("activations", "peak, MB"),
        cell("intensity", "FLOPs per byte"),
        *((cell("latency", "median, ms"), cell("throughput", "images/s")) if is_timed else ()),
    )
    rows = [(breakable(name), *_counted(cost), *(_timed(latency) if is_timed else ())) for name, cost, latency in known]
    return section(
        "cost",
        "Cost",
        table(
            f"One forward pass on an input of {by(known[0][1].input_size)} (images, channels, rows, columns)",
            headings,
            rows,
        ),
        caption(
            "MACs are multiply-accumulates of convolutions and matrix products. Large kernels are depthwise ones of 7 "
            "or more. Peak: the activations that are alive at a time in inference. Intensity takes every operand and "
            "result as moved once."
        ),
        caption("Latency, with its 5 % and 95 % quantiles: on the machine that made this page.") if is_timed else "",
    )


def _counted(cost: Cost) -> tuple[str, ...]:
    total = cost.total
    return (
        cell(f"{total.parameters / 1e6:.2f}"),
        cell("-" if total.nonzeros is None else f"{total.nonzeros / 1e6:.2f}"),
        cell(f"{total.macs / 1e9:.3g}"),
        cell(percent(cost.large_kernel_mac_share), f"{cost.large_kernel_layers} layers"),
        cell(percent(cost.large_kernel_parameter_share)),
        cell(f"{cost.peak_bytes / 1e6:.3g}"),
        cell(f"{total.intensity:.3g}"),
    )


def _timed(latency: Latency | None) -> tuple[str, str]:
    if latency is None:
        return cell("-"), cell("-")
    quantiles = f"{latency.p05_ms:.3g} to {latency.p95_ms:.3g}"
    return cell(f"{latency.median_ms:.3g}", quantiles), cell(f"{latency.images_per_s:.3g}")
