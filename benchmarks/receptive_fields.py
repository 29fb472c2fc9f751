"""The papers' claims about effective receptive fields, measured: kernels against depth, sizes of images, training.

    python benchmarks/receptive_fields.py benchmarks/results/receptive_fields.json --images kodak18.zip \
        --runs K3=runs/k3 K31=runs/k31 --page docs/receptive_fields.md

Networks with random weights (seed 0, BatchNorm as it starts) at 224, 512 and 1024 px; networks that were trained, the
run folders of ``--runs``, at 128 (their training size), 224 and 512 px, each beside its own random weights. Blocks
whose layer scale starts at 1e-6, or whose last norm starts at 0, are closed, and a random network would show its stem
alone: those of the first table start open, at 1.
All are merged first, which leaves the function as it is. What is in the record is not measured again. The tables
between the marks of the page are written anew.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from widefield._core.files import write_text_atomically
from widefield.analysis.images import PhotoTensors
from widefield.analysis.receptive_field_measurement import measure_receptive_field
from widefield.bench.environment import environment
from widefield.reparam import merge
from widefield.tasks.classification import load_classifier, open_model
from widefield.tasks.classification.card import make_classifier

OPEN = {"layer_scale": 1.0}
OPEN_RESNET = {"zero_init_last": False}
NETWORKS: dict[str, dict[str, Any]] = {
    "replknet_3b": {},
    "replknet_7b": {},
    "replknet_13b": {},
    "replknet_31b": {},
    "resnet101": OPEN_RESNET,
    "resnet152": OPEN_RESNET,
    "slak_t": OPEN,
    "pelk_t": OPEN,
    "pelk_t_101": OPEN,
    "convnext_lk_t": OPEN,
}
SIZES, TRAINED_SIZES = (224, 512, 1024), (128, 224, 512)
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def networks(runs: Iterable[str]) -> Iterator[tuple[str, str, int, Any]]:
    """Yield name, kind of weights, size of the images, and what makes the network and its normalisation."""
    for name, settings in NETWORKS.items():
        for size in SIZES:
            yield name, "random", size, lambda name=name, settings=settings: by_name(name, settings)
    for run in runs:
        name, _, folder = run.partition("=")
        for size in TRAINED_SIZES:
            for weights in ("trained", "random"):
                yield name, weights, size, lambda folder=folder, weights=weights: by_run(Path(folder), weights)


def by_name(name: str, settings: dict[str, Any]) -> tuple[torch.nn.Module, Any, Any]:
    opened = open_model(name, **settings)
    return opened.model, opened.mean, opened.std


def by_run(folder: Path, weights: str) -> tuple[torch.nn.Module, Any, Any]:
    model, card = load_classifier(folder)
    if weights == "random":
        torch.manual_seed(0)
        model = make_classifier(card.model, len(card.classes)).eval()
    return model, card.data.mean, card.data.std


def measured(make: Any, name: str, weights: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    model, mean, std = make()
    if any(hasattr(module, "reparameterize") for module in model.modules()):
        merge(model)
    count = min(options.count, 4) if size > 512 else options.count
    images = PhotoTensors(options.images, (size, size), mean=mean, std=std, count=count)
    shown = track(images, description=f"{name} {weights} {size} px", transient=True)
    return measure_receptive_field(model, shown, name=name, weights=weights).summary()


def percent(areas: list[dict[str, Any]], threshold: float) -> str:
    area = next(area for area in areas if area["threshold"] == threshold)
    if area["ratio"] is None:
        return "none"
    half = "" if area["low"] is None else f" ± {50 * (area['high'] - area['low']):.1f}"
    return f"{100 * area['ratio']:.1f}{half}"


def table(fields: list[dict[str, Any]], of_trained: bool) -> str:
    thresholds = (0.2, 0.3, 0.5, 0.99)
    titles = ["network", "weights", "px", *(f"r({t:.0%}) %" for t in thresholds), "diameter px", "r(50%) % of the map"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    trained = {field["name"] for field in fields if field["weights"] == "trained"}
    for field in fields:
        if (field["name"] in trained) is not of_trained:
            continue
        cells = [field["name"], field["weights"], str(field["input_size"][0])]
        cells += [percent(field["areas"], threshold) for threshold in thresholds]
        diameter = field["effective_diameter_px"]
        cells += ["-" if diameter is None else f"{diameter:.0f}", percent(field["areas_of_the_linear_map"], 0.5)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(record: dict[str, Any]) -> str:
    """Return the measured part of the page: both tables."""
    parts = ["**Random weights**", table(record["fields"], False), "**Trained**", table(record["fields"], True)]
    return "\n\n".join(parts)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("record", type=Path, help="JSON file; what it holds is not measured again")
    parser.add_argument("--images", type=Path, required=True, help="photos: a folder or an archive")
    parser.add_argument("--count", type=int, default=8, help="photos; at most 4 at 1024 px")
    parser.add_argument("--runs", nargs="*", default=[], metavar="NAME=FOLDER", help="networks that were trained")
    parser.add_argument("--page", type=Path, help="Markdown page whose measured part is written anew")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    known = json.loads(options.record.read_text(encoding="utf-8"))["fields"] if options.record.exists() else []
    found = {(field["name"], field["weights"], field["input_size"][0]): field for field in known}
    where = environment("cpu")
    for name, weights, size, make in networks(options.runs):
        key = (name, weights, size)
        if key not in found:
            found[key] = measured(make, name, weights, size, options)
            gc.collect()
            record = {"environment": vars(where), "fields": list(found.values())}
            write_text_atomically(options.record, json.dumps(record, indent=1) + "\n")
            sys.stdout.write(f"{name} {weights} {size}: {percent(found[key]['areas'], 0.5)} %\n")
            sys.stdout.flush()
    if options.page is not None:
        text = options.page.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        body = page(json.loads(options.record.read_text(encoding="utf-8")))
        write_text_atomically(options.page, f"{before}{BEGIN}\n\n{body}\n\n{END}{after}")


if __name__ == "__main__":
    main()
