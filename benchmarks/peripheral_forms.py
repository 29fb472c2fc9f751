"""Time the forms of peripheral convolution on this CPU, map by map, at PeLK's layers, and write a record.

    python benchmarks/peripheral_forms.py benchmarks/results/cpu_peripheral_forms.json
    python benchmarks/peripheral_forms.py --layers 56x51 --batches 1 --rounds 3

Every form is first compared with float64; a wrong one is not timed. Forms take turns within one process, so their
ratios hold on a noisy machine where single times do not. One that is far behind after its first turn is not timed
again, and its one time stands as the record.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from widefield import __version__
from widefield.ops.peripheral_conv.clip import clip
from widefield.ops.peripheral_conv.expanded import ExpandedForm
from widefield.ops.peripheral_conv.form import MAPS, Form, Map
from widefield.ops.peripheral_conv.order import FORMS, order
from widefield.ops.peripheral_conv.problem import PeripheralProblem
from widefield.ops.peripheral_kernel import SharingGrid

# Channels of the convolution in PeLK-T and PeLK-B-101: three eighths of the width.
LAYERS = {
    "56x51": (46, 56, SharingGrid.exponential(51)),
    "28x49": (93, 28, SharingGrid.exponential(49)),
    "14x47": (187, 14, SharingGrid.exponential(47)),
    "56x101": (62, 56, SharingGrid.exponential(101, 3)),
    "28x69": (124, 28, SharingGrid.exponential(69, 3)),
    "14x67": (249, 14, SharingGrid.exponential(67, 3)),
    "96x101": (62, 96, SharingGrid.exponential(101, 3)),
    "48x69": (124, 48, SharingGrid.exponential(69, 3)),
    "24x67": (249, 24, SharingGrid.exponential(67, 3)),
    "7x13": (374, 7, SharingGrid.exponential(13)),
}
BATCHES = (1, 4, 8)
ROUNDS = 7
TOLERANCE = 1e-5
HOPELESS = 4.0
"""Times the fastest form's first turn, after which a form is timed no more."""


def run(form: Form, map_: Map, problem: PeripheralProblem, x: Tensor, grad: Tensor, cells: Tensor) -> Tensor:
    if map_ == "forward":
        return form.forward(x, cells, None, problem).contiguous()
    if map_ == "grad_input":
        return form.grad_input(grad, cells, problem).contiguous()
    return form.grad_cells(grad, x, problem).contiguous()


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def relative_error(form: Form, map_: Map, problem: PeripheralProblem) -> float:
    """Return the relative error against float64 on one image and two channels."""
    small = replace(problem, batch=1, channels=2)
    x, grad = torch.randn(2, 1, 2, problem.height, problem.width)
    cells = torch.randn(2, 1, problem.rows.parameters, problem.columns.parameters)
    wide = (x.double(), grad.double(), cells.double())
    expected = run(ExpandedForm("reference"), map_, replace(small, dtype=torch.float64), *wide)
    return float((run(form, map_, small, x, grad, cells).double() - expected).norm() / expected.norm())


def measure(name: str, batch: int, map_: Map, rounds: int) -> dict[str, object]:
    channels, side, grid = LAYERS[name]
    asked = PeripheralProblem(batch=batch, channels=channels, height=side, width=side, rows=grid, columns=grid)
    problem, _ = clip(asked)
    x, grad = torch.randn(2, batch, channels, side, side)
    cells = torch.randn(channels, 1, problem.rows.parameters, problem.columns.parameters)
    calls: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, float] = {}
    for form in FORMS:
        if form.refusals(problem, map_):
            continue
        errors[form.name] = relative_error(form, map_, problem)
        if errors[form.name] < TOLERANCE:
            calls[form.name] = lambda form=form: run(form, map_, problem, x, grad, cells)
    # The first turn fills caches and pages.
    first = {form: min(milliseconds(call), milliseconds(call)) for form, call in calls.items()}
    times = {form: [value] for form, value in first.items()}
    hopeful = [form for form, value in first.items() if value <= HOPELESS * min(first.values())]
    for _ in range(rounds):
        for form in hopeful:
            times[form].append(milliseconds(calls[form]))
    medians = {form: sorted(values)[len(values) // 2] for form, values in times.items()}
    chosen = next(form for form in order(problem, map_) if form in calls)
    return {
        "layer": name,
        "problem": str(asked),
        "map": map_,
        "chosen": chosen,
        "median_ms": {form: round(value, 3) for form, value in medians.items()},
        "minimum_ms": {form: round(min(values), 3) for form, values in times.items()},
        "rounds": {form: len(values) for form, values in times.items()},
        "relative_error": {form: float(f"{value:.2e}") for form, value in errors.items()},
        "share_of_best": round(min(medians.values()) / medians[chosen], 3),
        "speedup_over_expanded": round(medians["expanded"] / medians[chosen], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="the record, JSON")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS), help="side of the map x kernel")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    torch.manual_seed(0)
    rows = []
    with torch.no_grad():
        for name in given.layers:
            for batch in given.batches:
                for map_ in MAPS:
                    rows.append(measure(name, batch, map_, given.rounds))
                    print(name, f"N{batch}", map_, rows[-1]["median_ms"], "chosen", rows[-1]["chosen"], flush=True)
    for map_ in MAPS:
        shares = [row["share_of_best"] for row in rows if row["map"] == map_]
        gains = [row["speedup_over_expanded"] for row in rows if row["map"] == map_]
        print(map_, "worst share of best", min(shares), "speed-up over expanded", min(gains), "to", max(gains))
    if given.path is None:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    record = {
        "what": "peripheral convolution, float32, NCHW, median of interleaved rounds",
        "device": f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "widefield": __version__,
        "commit": commit,
        "rows": rows,
    }
    given.path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
