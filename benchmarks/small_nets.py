"""Small networks on real photos: sparse against dense of the same size, and a student with and without a teacher.

    python benchmarks/small_nets.py benchmarks/results/cpu_small_nets.json --data ../shared/data/caltech101 \
        --runs runs/small_nets --seeds 0 1 2 --epochs 30

Networks, all of SLaK's blocks in SLaK-A's depths, ``--width`` channels in the first stage (arms of the comparison):

* ``sparse``: 40 % of the matrices zero, masks changing as in SLaK-S;
* ``dense``: as narrow as it must be to have as many weights as ``sparse`` has that are not zero;
* ``teacher``: as wide as ``sparse``, dense, of the first seed alone;
* ``student``: the network of ``dense`` with 7 x 7 kernels, alone;
* ``student_nkd`` (and, if named by --arms, ``student_kd`` and ``student_feature``): the same with that teacher.

Every arm has the same images, augmentation, optimizer and number of epochs. Where the data has no test split, the last
epoch's score is the one to compare: the best epoch's was chosen on the very same photos. Runs that are there are not
repeated, one that was stopped is taken up, and the record is written anew after each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from widefield._core.checks import check
from widefield._core.files import write_text_atomically
from widefield._core.memory import keep_freed_memory
from widefield.data import open_splits
from widefield.models import create_model
from widefield.recipes import recipe
from widefield.sparsity.config import SparsityConfig
from widefield.tasks.classification import ModelConfig, RunConfig, load_classifier, train
from widefield.tasks.distillation import DistillationConfig

ARMS = ("teacher", "dense", "sparse", "student", "student_nkd", "student_kd", "student_feature")
DEFAULT_ARMS = ARMS[:5]
SPARSITY = 0.4
LAYER_SCALE = 1.0
"""First value. With SLaK's own 1e-6, made for 300 epochs, the teacher reached 12.2 % in ten."""
SMALL_KERNELS = (7, 7, 7, 7)


@dataclass(frozen=True)
class Score:
    """What one run reached."""

    arm: str
    seed: int
    last_top1: float
    best_top1: float
    merged_top1: float
    parameters: int
    nonzero_parameters: int
    merged_parameters: int
    epochs: int
    seconds: float


def channels_of(width: int) -> tuple[int, ...]:
    return tuple(width * 2**stage for stage in range(4))


def kept_of(model: torch.nn.Module) -> int:
    """Return how many parameters are not zero when 40 % of every matrix are."""
    return round(sum(p.numel() * (1 - SPARSITY if p.ndim in (2, 4) else 1) for p in model.parameters()))


def narrow_width(wide: int, classes: int) -> int:
    """Return the width at which the network has as many parameters as the wide one keeps when it is sparse."""
    with torch.device("meta"):
        widths = {
            width: create_model("slak_a", num_classes=classes, channels=channels_of(width))
            for width in range(wide // 2, wide + 1)
        }
        kept = kept_of(widths[wide])
    sizes = {width: sum(p.numel() for p in model.parameters()) for width, model in widths.items()}
    return min(sizes, key=lambda width: abs(sizes[width] - kept))


def config_of(arm: str, seed: int, classes: int, options: argparse.Namespace) -> RunConfig:
    """Return the run of an arm: the recipe for folders of photos with another network."""
    base = recipe("image_folder")
    kernels = SMALL_KERNELS if arm.startswith("student") else None
    is_wide = arm in ("teacher", "sparse")
    width = options.width if is_wide else narrow_width(options.width, classes)
    settings = (f"channels={list(channels_of(width))}", f"layer_scale={LAYER_SCALE}")
    config = replace(
        base,
        recipe=f"small_nets_{arm}",
        model=ModelConfig(
            name="slak_a", kernel_sizes=kernels, options=settings, drop_path_rate=base.model.drop_path_rate
        ),
        data=replace(base.data, root=str(options.data), image_size=options.image_size, workers=options.workers),
        trainer=replace(base.trainer, epochs=options.epochs, seed=seed, tensorboard=False, checkpoint_every_steps=50),
        schedule=replace(base.schedule, warmup_epochs=min(base.schedule.warmup_epochs, options.epochs / 5)),
    )
    if "_" in arm:
        teacher = str(folder_of("teacher", options.seeds[0], options))
        method: Any = arm.split("_")[1]
        temperature = 4.0 if method == "kd" else 1.0
        return replace(
            config, distillation=DistillationConfig(teacher=teacher, methods=(method,), temperature=temperature)
        )
    if arm == "sparse":
        # As SLaK-S and SLaK-B: the mask of a short run must change often.
        sparsity = SparsityConfig(
            sparsity=SPARSITY, allocation="snip", grow="random", prune_fraction=0.3, update_every=100, seed=seed
        )
        return replace(config, sparsity=sparsity)
    return config


def folder_of(arm: str, seed: int, options: argparse.Namespace) -> Path:
    name = f"{arm}-width{options.width}-{options.image_size}px-{options.epochs}epochs-seed{seed}"
    return options.runs / name


def score_of(arm: str, seed: int, classes: int, options: argparse.Namespace) -> Score | None:
    """Run an arm if it has not been, and return what it reached; None on any process but the first."""
    folder = folder_of(arm, seed, options)
    if not (folder / "summary.json").is_file():
        is_begun = (folder / "config.yaml").is_file()
        if train(config_of(arm, seed, classes, options), folder, resume=is_begun) is None:
            return None
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    model = load_classifier(folder)[0]
    nonzero = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
    # The average of weights under changing masks may hold a few more than the masks do.
    check(
        arm != "sparse" or nonzero < 1.1 * kept_of(model),
        f"about {kept_of(model):,} weights in {folder} that are not zero",
        f"{nonzero:,}",
        "mend sparse training before it is compared",
    )
    return Score(
        arm=arm,
        seed=seed,
        last_top1=summary["last_validation_top1"],
        best_top1=summary["top1"],
        merged_top1=summary["merged_top1"],
        parameters=summary["parameters"],
        nonzero_parameters=nonzero,
        merged_parameters=summary["merged_parameters"],
        epochs=summary["epochs"],
        seconds=summary["seconds"],
    )


def planned(options: argparse.Namespace) -> list[tuple[str, int]]:
    """Return arm and seed of every run, seed by seed; the teacher comes before its students."""
    arms = sorted(options.arms, key=ARMS.index)
    return [(arm, seed) for seed in options.seeds for arm in arms if arm != "teacher" or seed == options.seeds[0]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return mean, extremes and, from two values on, the sample standard deviation."""
    found = {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
    return {**found, "standard_deviation": statistics.stdev(values)} if len(values) > 1 else found


def record_of(scores: Sequence[Score], options: argparse.Namespace, data: str) -> dict[str, Any]:
    arms = {}
    for arm in options.arms:
        mine = [score for score in scores if score.arm == arm]
        if mine:
            arms[arm] = {
                name: spread([getattr(score, name) for score in mine]) for name in ("last_top1", "best_top1")
            } | {"nonzero_parameters": mine[0].nonzero_parameters, "runs": [vars(score) for score in mine]}
    differences = {}
    for one, other in (("sparse", "dense"), *((arm, "student") for arm in options.arms if "_" in arm)):
        seeds = {arm: {score.seed: score.last_top1 for score in scores if score.arm == arm} for arm in (one, other)}
        paired = [seeds[one][seed] - seeds[other][seed] for seed in seeds[one] if seed in seeds[other]]
        if paired:
            differences[f"{one} minus {other}"] = {**spread(paired), "seeds": len(paired)}
    return {
        "what": "top-1 in percent on the validation photos, of the last epoch and of the best; differences by seed",
        "data": data,
        "image_size": options.image_size,
        "width": options.width,
        "epochs": options.epochs,
        "seeds": options.seeds,
        "planned": len(planned(options)),
        "done": len(scores),
        "differences_of_last_top1": differences,
        "arms": arms,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("record", type=Path, help="JSON file to write")
    parser.add_argument("--data", type=Path, required=True, help="folder of the photos")
    parser.add_argument("--runs", type=Path, default=Path("runs/small_nets"), help="where the run folders go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--width", type=int, default=40, help="channels of the first stage; SLaK-A has 40")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(DEFAULT_ARMS))
    return parser.parse_args()


def main() -> None:
    options = parsed()
    keep_freed_memory()
    splits = open_splits(replace(recipe("image_folder").data, root=str(options.data)))
    classes, data = len(splits.train.classes), splits.description
    scores: list[Score] = []
    for arm, seed in planned(options):
        if (score := score_of(arm, seed, classes, options)) is None:
            continue
        scores.append(score)
        write_text_atomically(options.record, json.dumps(record_of(scores, options, data), indent=1) + "\n")
        sys.stdout.write(
            f"seed {seed}, {arm}: {score.last_top1:.2f} % (best {score.best_top1:.2f}), "
            f"{score.nonzero_parameters:,} weights, {score.seconds:.0f} s\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
