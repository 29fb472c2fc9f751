"""The first masks of a run, drawn on one rank of two; the arguments are the folder where both meet and the rank."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from widefield.data import AugmentationConfig, DataConfig, open_splits
from widefield.engine import TrainerConfig, seed_everything
from widefield.sparsity import Masks, SparsityConfig
from widefield.tasks.classification import ModelConfig, RunConfig
from widefield.tasks.classification.card import make_classifier
from widefield.tasks.classification.sparse import first_masks

DATA = DataConfig(root="embedded:digits", image_size=32, batch_size=32, workers=0, crop_fraction=1.0)


class Place:
    """What the first masks ask of accelerate's object."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.process_index, self.num_processes, self.device = rank, ranks, torch.device("cpu")


def run(**augmentation: Any) -> RunConfig:
    return RunConfig(
        model=ModelConfig(
            name="slak_a",
            kernel_sizes=(9, 7, 7, 7),
            options=("channels=[8, 16, 24, 32]", "depths=[1, 1, 1, 1]", "layer_scale=1.0"),
        ),
        data=DATA,
        augmentation=AugmentationConfig(**augmentation),
        trainer=TrainerConfig(device="cpu", sync_batch_norm=True),
        sparsity=SparsityConfig(allocation="snip", sparsity=0.4),
    )


def masks_of(config: RunConfig, rank: int = 0, ranks: int = 1) -> Masks:
    seed_everything(0)
    model = make_classifier(config.model, 10)
    seed_everything(0, rank)
    place: Any = Place(rank, ranks)
    return first_masks(model, config, open_splits(config.data).train, place)


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    save_file(masks_of(run(), rank, 2).state_dict(), folder / f"masks_{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
