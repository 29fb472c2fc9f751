"""Images a second of our training loader beside a bare timm loader, over the same photos with the same transform.

    OMP_NUM_THREADS=1 python benchmarks/input_pipeline.py benchmarks/results/input_pipeline.json --data caltech101

The photos of PLACE/train.zip are unpacked to a temporary folder. timm's `create_dataset` and `create_loader` read it,
ours does, and ours reads the archive as it lies. All have one augmentation: our transform is put on timm's data set as
well, since timm's own stops at images that Pillow 13 refuses to posterize. Whole epochs take turns in one process,
workers are kept from epoch to epoch, and the first epoch of each loader, which starts them, is left out. "ratio" is the
median over the rounds of ours over timm's in the same round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from timm.data import create_dataset, create_loader

from widefield.bench.environment import environment
from widefield.data import AugmentationConfig, DataConfig, open_splits, train_loader
from widefield.data.transforms import train_transform

AUGMENTATION = AugmentationConfig()
WORKERS = (0, 2)

Epoch = Callable[[int], Iterator[int]]
"""From the number of an epoch to the images of each of its batches."""


def timm_epochs(folder: Path, data: DataConfig) -> Epoch:
    dataset: Any = create_dataset("", root=str(folder), split="train", is_training=True, batch_size=data.batch_size)
    loader: Any = create_loader(
        dataset,
        input_size=(3, data.image_size, data.image_size),
        batch_size=data.batch_size,
        is_training=True,
        num_workers=data.workers,
        device=torch.device("cpu"),
        use_prefetcher=False,
    )
    loader.dataset.transform = train_transform(data, AUGMENTATION)
    return lambda epoch: (len(images) for images, _ in loader)


def our_epochs(data: DataConfig) -> Epoch:
    loader = train_loader(open_splits(data).train, data, AUGMENTATION, seed=0)
    return lambda epoch: (len(batch) for batch in loader.epoch(epoch))


def images_per_s(epoch: Epoch, number: int) -> float:
    start = time.perf_counter()
    return sum(epoch(number)) / (time.perf_counter() - start)


def compare(folder: Path, place: Path, data: DataConfig, rounds: int) -> dict[str, Any]:
    made = {
        "timm": timm_epochs(folder, data),
        "ours": our_epochs(replace(data, root=str(folder))),
        "ours, archive": our_epochs(replace(data, root=str(place))),
    }
    rates: dict[str, list[float]] = {name: [] for name in made}
    for epoch in made.values():
        images_per_s(epoch, 0)
    for number in range(1, rounds + 1):
        # Forwards, then backwards: none is always the first of a round.
        for name in list(made)[:: 1 if number % 2 else -1]:
            rates[name].append(images_per_s(made[name], number))
    return {
        "workers": data.workers,
        "images_per_s": {name: median(values) for name, values in rates.items()},
        "ratio": {
            name: median([mine / theirs for mine, theirs in zip(values, rates["timm"], strict=True)])
            for name, values in rates.items()
            if name != "timm"
        },
        "rounds": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="record to write")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.zip and val.zip")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    data = DataConfig(image_size=options.image_size, batch_size=options.batch_size)
    entries = []
    with tempfile.TemporaryDirectory() as unpacked:
        folder = Path(unpacked)
        for split in ("train", "val"):
            with zipfile.ZipFile(options.data / f"{split}.zip") as archive:
                archive.extractall(folder / split)
        for workers in WORKERS:
            case = replace(data, workers=workers)
            entries.append(compare(folder, options.data, case, options.rounds))
            print({name: entries[-1][name] for name in ("workers", "images_per_s", "ratio")}, flush=True)
    record = {
        "environment": asdict(environment("cpu")),
        "image_size": data.image_size,
        "batch_size": data.batch_size,
        "augmentation": asdict(AUGMENTATION),
        "entries": entries,
    }
    options.file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
