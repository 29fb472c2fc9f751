r"""The published training settings of SLaK on ImageNet-1K.

Source: Liu et al., "More ConvNets in the 2020s" (ICLR 2023), and the commands and defaults of the authors' code:
ConvNeXt's recipe, 40 % of every 2-d and 4-d tensor at zero, layer densities by SNIP from one batch, the smallest
weights replaced at random. The batch is 4096 images. Fine-tuning at 384 px is not described there; PeLK's paper gives
the score of SLaK-B (85.5 %, Table 4), and the settings here are ConvNeXt-B's for its own fine-tuning (its TRAINING.md).

Command, one machine with 8 GPUs, the batch made up by accumulation::

    torchrun --nproc-per-node 8 -m widefield train slak_t_in1k_300ep --data.root /data/imagenet \
        --trainer.precision bf16 --data.batch-size 1024 --trainer.accumulate-steps 4

Four such machines under SLURM::

    #SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
        -m widefield train slak_t_in1k_300ep --data.root /data/imagenet --trainer.precision bf16 --output runs/slak_t

Memory and time: not measured by us; ``--dry-run`` estimates both on your machine, ``--memory-limit GB`` fits the batch.
Expected score: the published one, named at each recipe, which we have not reproduced. BatchNorm statistics are shared
between processes and averaged like the weights, as in the authors' code.
"""

from __future__ import annotations

from widefield.recipes._imagenet import fine_tuning, pre_training
from widefield.sparsity.config import SparsityConfig
from widefield.tasks.classification import RunConfig

DROP_PATH = {"t": 0.1, "s": 0.4, "b": 0.5}
"""Of each variant, whatever the number of epochs; PeLK takes the same."""


def sparsity(variant: str) -> SparsityConfig:
    """Return the published sparsity of a variant ("t", "s" or "b"); S and B were not tuned, say the authors."""
    every, fraction = (2000, 0.5) if variant == "t" else (100, 0.3)
    return SparsityConfig(allocation="snip", update_every=every, prune_fraction=fraction)


def _slak(recipe: str, variant: str, epochs: int) -> RunConfig:
    return pre_training(
        recipe,
        f"slak_{variant}",
        epochs=epochs,
        drop_path_rate=DROP_PATH[variant],
        ema_decay=0.9999,
        sparsity=sparsity(variant),
    )


def slak_t_in1k_120ep() -> RunConfig:
    """SLaK-T, the 120-epoch study; published 81.6 % (kernels of 31: 81.5 %, of 61: 81.5 %).

    For the other kernel sizes: ``--model.kernel-sizes 31 29 27 13``.
    """
    return _slak("slak_t_in1k_120ep", "t", 120)


def slak_s_in1k_120ep() -> RunConfig:
    """SLaK-S in 120 epochs; no published score."""
    return _slak("slak_s_in1k_120ep", "s", 120)


def slak_b_in1k_120ep() -> RunConfig:
    """SLaK-B in 120 epochs; no published score."""
    return _slak("slak_b_in1k_120ep", "b", 120)


def slak_t_in1k_300ep() -> RunConfig:
    """SLaK-T, the main result; published 82.5 %."""
    return _slak("slak_t_in1k_300ep", "t", 300)


def slak_s_in1k_300ep() -> RunConfig:
    """SLaK-S, the main result; published 83.8 %."""
    return _slak("slak_s_in1k_300ep", "s", 300)


def slak_b_in1k_300ep() -> RunConfig:
    """SLaK-B, the main result; published 84.0 %."""
    return _slak("slak_b_in1k_300ep", "b", 300)


def slak_b_in1k_384_finetune() -> RunConfig:
    """SLaK-B from 224 to 384 px with ConvNeXt-B's settings, masks kept; published 85.5 %, settings unpublished."""
    return fine_tuning(
        "slak_b_in1k_384_finetune",
        "slak_b",
        "runs/slak_b_in1k_300ep",
        layer_decay=0.7,
        drop_path_rate=0.8,
        sparsity=SparsityConfig(allocation="nonzero", update_every=None),
    )


RECIPES = (
    slak_t_in1k_120ep,
    slak_s_in1k_120ep,
    slak_b_in1k_120ep,
    slak_t_in1k_300ep,
    slak_s_in1k_300ep,
    slak_b_in1k_300ep,
    slak_b_in1k_384_finetune,
)
