"""Networks side by side: a panel for each kind of cost, a bar for each network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from widefield._core.checks import check
from widefield._core.files import write_atomically
from widefield._core.plain_text import figure_text
from widefield.analysis.cost import Cost
from widefield.analysis.latency import Latency
from widefield.analysis.operator_shares import KINDS, Kind, OperatorShares

# Depthwise in orange, large before small; then what is dense, and what no multiply-accumulate is in.
_COLOURS = ("#d9722e", "#f0b48a", "#7fa8d6", "#2563a8", "#123a68", "#8a9a5b", "#c9c27a", "#b5b5b5")


def draw_costs(
    path: Path,
    costs: Mapping[str, Cost],
    latencies: Mapping[str, Latency] | None = None,
    shares: Mapping[str, OperatorShares] | None = None,
) -> None:
    """Draw parameters, multiply-accumulates and activation memory, with the part of the large kernels marked.

    Args:
        path: PNG file to write.
        costs: By the name of the network; at least one.
        latencies: Measured times of some of them, for a panel of their own.
        shares: What kinds of operators take in some of them, for two panels: of the multiply-accumulates and the time.

    Raises:
        InputError: If there is no network.
    """
    check(bool(costs), "at least one network to draw", "none", "measure its cost first")
    from matplotlib.figure import Figure

    names = list(costs)
    times = {} if latencies is None else dict(latencies)
    kinds = {} if shares is None else dict(shares)
    panels = 3 + bool(times) + 2 * bool(kinds)
    height = 0.42 * len(names) + (2.1 if kinds else 1.5)
    figure = Figure(figsize=(3.1 * panels + 1, height), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True)
    totals = [costs[name].total for name in names]
    _bars(axes[0], names, [total.parameters / 1e6 for total in totals], "parameters in millions")
    _bars(axes[1], names, [total.macs / 1e9 for total in totals], "multiply-accumulates in billions (GMACs)")
    _bars(axes[2], names, [costs[name].peak_bytes / 1e6 for name in names], "activations at the peak in MB")
    rows = _rows(names)
    large = [costs[name].large_kernel_parameters / 1e6 for name in names]
    axes[0].barh(rows, large, color="#d9722e", height=0.6, label="depthwise kernels of 7 and more")
    axes[1].barh(rows, [costs[name].large_kernel_macs / 1e9 for name in names], color="#d9722e", height=0.6)
    if times:
        timed = [name for name in names if name in times]
        found = [times[name] for name in timed]
        spread = [[each.median_ms - each.p05_ms for each in found], [each.p95_ms - each.median_ms for each in found]]
        _bars(axes[3], timed, [each.median_ms for each in found], "latency in ms (median, 5 to 95 %)", spread)
    if kinds:
        _parts(axes[-2], names, {name: found.of_macs for name, found in kinds.items()}, "share of the MACs in %")
        _parts(axes[-1], names, {name: found.of_time for name, found in kinds.items()}, "share of the time in %")
        _name_parts(axes[-1])
    axes[0].invert_yaxis()
    figure.legend(loc="outside lower center", fontsize=8, ncols=5)
    sizes = {costs[name].input_size for name in names}
    figure.suptitle("one forward pass of " + ", ".join("x".join(map(str, size)) for size in sorted(sizes)), fontsize=10)
    metadata = {"Software": ""}
    write_atomically(path, lambda partial: figure.savefig(partial, format="png", dpi=120, metadata=metadata))


def _rows(names: list[str]) -> list[str]:
    return [figure_text(name) for name in names]


def _parts(panel: Any, names: list[str], shares: Mapping[str, Mapping[Kind, float]], label: str) -> None:
    start = [0.0] * len(names)
    for kind, colour in zip(KINDS, _COLOURS, strict=True):
        widths = [100 * shares[name][kind] if name in shares else 0.0 for name in names]
        panel.barh(_rows(names), widths, left=start, color=colour, height=0.6)
        start = [left + width for left, width in zip(start, widths, strict=True)]
    panel.set_xlabel(label, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.set_xlim(0, 100)
    panel.spines[["top", "right"]].set_visible(False)


def _name_parts(panel: Any) -> None:
    for container, kind in zip(panel.containers, KINDS, strict=True):
        container.set_label(kind)


def _bars(panel: Any, names: list[str], values: list[float], label: str, spread: Any = None) -> None:
    bars = panel.barh(_rows(names), values, color="#2563a8", height=0.6, xerr=spread)
    panel.bar_label(bars, labels=[f"{value:.3g}" for value in values], padding=2, fontsize=8)
    panel.set_xlabel(label, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.margins(x=0.18)
    panel.spines[["top", "right"]].set_visible(False)
