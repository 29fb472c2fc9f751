r"""PeLK on ImageNet-1K, as far as it was published.

Source: Chen et al., "PeLK" (CVPR 2024), sections 3 and 5.3: augmentation, regularisation and hyper-parameters "all set
the same" as SLaK's, 120 epochs for studies and 300 for the main results, dynamic sparsity with SLaK's settings, B and
B-101 also at 384 px. Its Appendix A, with the details, could not be had. Unknown are therefore drop path, the average
of the weights and the optimizer, where SLaK's stand here, and all settings of the fine-tuning, where ConvNeXt-B's stand
(its TRAINING.md), as in SLaK's recipe. No code was published.

Command, one machine with 8 GPUs, the batch of 4096 made up by accumulation::

    torchrun --nproc-per-node 8 -m widefield train pelk_t_in1k_300ep --data.root /data/imagenet \
        --trainer.precision bf16 --data.batch-size 1024 --trainer.accumulate-steps 4

Several machines under SLURM: as in SLaK's recipe, with ``srun torchrun --nnodes 4 ...``.

Memory and time: not measured by us; ``--dry-run`` estimates both on your machine, ``--memory-limit GB`` fits the batch.
Expected score: the published one, named at each recipe, which we have not reproduced.
"""

from __future__ import annotations

from dataclasses import replace

from widefield.recipes import slak
from widefield.recipes._imagenet import fine_tuning, pre_training
from widefield.sparsity.config import SparsityConfig
from widefield.tasks.classification import RunConfig


def _pelk(recipe: str, model: str, epochs: int) -> RunConfig:
    variant = model.split("_")[1]
    return pre_training(
        recipe,
        model,
        epochs=epochs,
        drop_path_rate=slak.DROP_PATH[variant],
        ema_decay=0.9999,
        sparsity=slak.sparsity(variant),
    )


def _fine_tuning(recipe: str, model: str) -> RunConfig:
    return fine_tuning(
        recipe,
        model,
        f"runs/{model}_in1k_300ep",
        layer_decay=0.7,
        drop_path_rate=0.8,
        sparsity=SparsityConfig(allocation="nonzero", update_every=None),
    )


def pelk_t_in1k_120ep() -> RunConfig:
    """PeLK-T, the 120-epoch study of kernels and centres; published 81.6 % (Tables 6 and 7)."""
    return _pelk("pelk_t_in1k_120ep", "pelk_t", 120)


def pelk_t_101_in1k_120ep() -> RunConfig:
    """PeLK-T with kernels of 101, the 120-epoch study; published 81.6 % (Table 7)."""
    return _pelk("pelk_t_101_in1k_120ep", "pelk_t_101", 120)


def pelk_t_in1k_120ep_dense() -> RunConfig:
    """PeLK-T without sparsity, positional embedding off, K = 33: the study of grids; published 81.4 % (Table 5, row 5).

    Every grid of the table spans 33 taps. Which stages have K = 33 is not stated: here all four. Nor is the width: here
    that of ConvNeXt-T, since the factor of 1.3 came with the sparsity (in SLaK it makes up for the weights at zero).
    """
    base = _pelk("pelk_t_in1k_120ep_dense", "pelk_t", 120)
    model = replace(
        base.model, kernel_sizes=(33, 33, 33, 33), options=("position=none", "channels=[96, 192, 384, 768]")
    )
    return replace(base, model=model, sparsity=None)


def pelk_t_in1k_300ep() -> RunConfig:
    """PeLK-T, the main result; published 82.6 %."""
    return _pelk("pelk_t_in1k_300ep", "pelk_t", 300)


def pelk_s_in1k_300ep() -> RunConfig:
    """PeLK-S, the main result; published 83.9 %."""
    return _pelk("pelk_s_in1k_300ep", "pelk_s", 300)


def pelk_b_in1k_300ep() -> RunConfig:
    """PeLK-B, the main result; published 84.2 %."""
    return _pelk("pelk_b_in1k_300ep", "pelk_b", 300)


def pelk_b_101_in1k_300ep() -> RunConfig:
    """PeLK-B-101 at 224 px, to be fine-tuned at 384; no published score of its own."""
    return _pelk("pelk_b_101_in1k_300ep", "pelk_b_101", 300)


def pelk_b_in1k_384_finetune() -> RunConfig:
    """PeLK-B from 224 to 384 px with ConvNeXt-B's settings; published 85.6 %, settings unpublished."""
    return _fine_tuning("pelk_b_in1k_384_finetune", "pelk_b")


def pelk_b_101_in1k_384_finetune() -> RunConfig:
    """PeLK-B-101 from 224 to 384 px with ConvNeXt-B's settings; published 85.8 %, settings unpublished."""
    return _fine_tuning("pelk_b_101_in1k_384_finetune", "pelk_b_101")


RECIPES = (
    pelk_t_in1k_120ep,
    pelk_t_101_in1k_120ep,
    pelk_t_in1k_120ep_dense,
    pelk_t_in1k_300ep,
    pelk_s_in1k_300ep,
    pelk_b_in1k_300ep,
    pelk_b_101_in1k_300ep,
    pelk_b_in1k_384_finetune,
    pelk_b_101_in1k_384_finetune,
)
