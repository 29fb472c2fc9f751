r"""The published training settings of UniRepLKNet on ImageNet-1K and ImageNet-22K.

Source: Ding et al., "UniRepLKNet" (CVPR 2024) and its extension (arXiv 2410.08049), Tables 16 and 17, and the commands
and defaults of the authors' code. Where table and code contradict each other, the recipes follow the code's commands,
which are what the released checkpoints come with:

* warm-up on ImageNet-1K: 20 epochs, the default that the commands leave in place; Table 16 says 5
  (``--schedule.warmup-epochs 5``);
* learning rate of L and XL on ImageNet-22K: 1e-3, as the commands say; Table 17 says 4e-3 (``--optimizer.lr 4e-3``).

Mixing on ImageNet-22K is the default of the authors' code, 0.8 and 1.0, which the commands leave in place. At 384 px
whole images are evaluated, squeezed to a square (``--data.crop-mode squash``).

Layer decay has the published groups: stem 0, first two stages 1 and 2 with the downsamplings 2 and 3 after them,
triples of the third stage from 3, last downsampling and stage 12, norm and head 13, each with rate^(13 - group). So it
is in the smaller variants too, whose third stages end below 11: T has no groups 9 to 11.

Command, one machine with 8 GPUs, the batch made up by accumulation::

    torchrun --nproc-per-node 8 -m widefield train unireplknet_s_in1k_300ep --data.root /data/imagenet \
        --trainer.precision bf16 --data.batch-size 1024 --trainer.accumulate-steps 4

Four such machines under SLURM::

    #SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
        -m widefield train unireplknet_s_in1k_300ep --data.root /data/imagenet --output runs/unireplknet_s

Memory and time: not measured by us; the authors report 24.6 GB and 6,642 images/s for S on 8 A100 at a batch of 4096
(Table 18). ``--dry-run`` estimates both on your machine, ``--memory-limit GB`` fits the batch. Expected score: the
published one, named at each recipe, which we have not reproduced. Each process has its own BatchNorm statistics, as in
the authors' code.
"""

from __future__ import annotations

from dataclasses import replace

from widefield.recipes._imagenet import fine_tuning, pre_training
from widefield.tasks.classification import RunConfig

_MIXING = {"a": (0.3, 0.3), "f": (0.3, 0.3), "p": (0.3, 0.3), "n": (0.5, 0.5), "t": (0.8, 1.0), "s": (0.8, 1.0)}
_DROP_PATH = {"a": 0.0, "f": 0.0, "p": 0.1, "n": 0.1, "t": 0.2, "s": 0.4}


def _in1k(recipe: str, variant: str) -> RunConfig:
    mixup, cutmix = _MIXING[variant]
    return pre_training(
        recipe,
        f"unireplknet_{variant}",
        epochs=300,
        drop_path_rate=_DROP_PATH[variant],
        mixup=mixup,
        cutmix=cutmix,
        sync_batch_norm=False,
    )


def _in22k(recipe: str, variant: str, drop_path_rate: float) -> RunConfig:
    is_large = variant in ("l", "xl")
    return pre_training(
        recipe,
        f"unireplknet_{variant}",
        epochs=90,
        drop_path_rate=drop_path_rate,
        warmup_epochs=5,
        root="imagenet-22k",
        validation_fraction=0.0,
        image_size=192 if is_large else 224,
        lr=1e-3 if is_large else 4e-3,
        sync_batch_norm=False,
    )


def _fine_tuning(recipe: str, variant: str) -> RunConfig:
    is_large = variant in ("l", "xl")
    return fine_tuning(
        recipe,
        f"unireplknet_{variant}",
        f"runs/unireplknet_{variant}_in22k_90ep",
        layer_decay=0.8,
        drop_path_rate=0.3 if is_large else 0.2,
        epochs=20 if is_large else 30,
        label_smoothing=0.3 if is_large else 0.1,
        ema_decay=0.9999 if is_large else None,
        sync_batch_norm=False,
    )


def unireplknet_a_in1k_300ep() -> RunConfig:
    """UniRepLKNet-A on ImageNet-1K; published 77.0 %."""
    return _in1k("unireplknet_a_in1k_300ep", "a")


def unireplknet_f_in1k_300ep() -> RunConfig:
    """UniRepLKNet-F on ImageNet-1K; published 78.6 %."""
    return _in1k("unireplknet_f_in1k_300ep", "f")


def unireplknet_p_in1k_300ep() -> RunConfig:
    """UniRepLKNet-P on ImageNet-1K; published 80.2 %."""
    return _in1k("unireplknet_p_in1k_300ep", "p")


def unireplknet_n_in1k_300ep() -> RunConfig:
    """UniRepLKNet-N on ImageNet-1K; published 81.6 %."""
    return _in1k("unireplknet_n_in1k_300ep", "n")


def unireplknet_t_in1k_300ep() -> RunConfig:
    """UniRepLKNet-T on ImageNet-1K; published 83.2 %."""
    return _in1k("unireplknet_t_in1k_300ep", "t")


def unireplknet_s_in1k_300ep() -> RunConfig:
    """UniRepLKNet-S on ImageNet-1K; published 83.9 %."""
    return _in1k("unireplknet_s_in1k_300ep", "s")


def unireplknet_vanilla_in1k_100ep() -> RunConfig:
    """The network of the ablations, 3-3-9-3 blocks of 96 to 768 channels with K = 3-13-13-13; published 81.6 %.

    Stated: 100 epochs, drop path 0.1 (the extension's Table 3). The rest is not, and is that of the recipes for
    ImageNet-1K. For the other kernel sizes: ``--model.kernel-sizes 3 11 11 11``.
    """
    base = pre_training(
        "unireplknet_vanilla_in1k_100ep", "unireplknet_s", epochs=100, drop_path_rate=0.1, sync_batch_norm=False
    )
    return replace(base, model=replace(base.model, kernel_sizes=(3, 13, 13, 13), options=("depths=[3, 3, 9, 3]",)))


def unireplknet_s_in22k_90ep() -> RunConfig:
    """UniRepLKNet-S, pre-training on ImageNet-22K at 224 px; no score of its own."""
    return _in22k("unireplknet_s_in22k_90ep", "s", 0.1)


def unireplknet_b_in22k_90ep() -> RunConfig:
    """UniRepLKNet-B, pre-training on ImageNet-22K at 224 px; no score of its own."""
    return _in22k("unireplknet_b_in22k_90ep", "b", 0.1)


def unireplknet_l_in22k_90ep() -> RunConfig:
    """UniRepLKNet-L, pre-training on ImageNet-22K at 192 px; no score of its own."""
    return _in22k("unireplknet_l_in22k_90ep", "l", 0.1)


def unireplknet_xl_in22k_90ep() -> RunConfig:
    """UniRepLKNet-XL, pre-training on ImageNet-22K at 192 px; no score of its own."""
    return _in22k("unireplknet_xl_in22k_90ep", "xl", 0.2)


def unireplknet_s_in22k_to_in1k_384() -> RunConfig:
    """UniRepLKNet-S from ImageNet-22K to 1K at 384 px; published 86.4 %."""
    return _fine_tuning("unireplknet_s_in22k_to_in1k_384", "s")


def unireplknet_b_in22k_to_in1k_384() -> RunConfig:
    """UniRepLKNet-B from ImageNet-22K to 1K at 384 px; published 87.4 %."""
    return _fine_tuning("unireplknet_b_in22k_to_in1k_384", "b")


def unireplknet_l_in22k_to_in1k_384() -> RunConfig:
    """UniRepLKNet-L from ImageNet-22K to 1K at 384 px; published 87.9 %."""
    return _fine_tuning("unireplknet_l_in22k_to_in1k_384", "l")


def unireplknet_xl_in22k_to_in1k_384() -> RunConfig:
    """UniRepLKNet-XL from ImageNet-22K to 1K at 384 px; published 88.0 %."""
    return _fine_tuning("unireplknet_xl_in22k_to_in1k_384", "xl")


RECIPES = (
    unireplknet_a_in1k_300ep,
    unireplknet_f_in1k_300ep,
    unireplknet_p_in1k_300ep,
    unireplknet_n_in1k_300ep,
    unireplknet_t_in1k_300ep,
    unireplknet_s_in1k_300ep,
    unireplknet_vanilla_in1k_100ep,
    unireplknet_s_in22k_90ep,
    unireplknet_b_in22k_90ep,
    unireplknet_l_in22k_90ep,
    unireplknet_xl_in22k_90ep,
    unireplknet_s_in22k_to_in1k_384,
    unireplknet_b_in22k_to_in1k_384,
    unireplknet_l_in22k_to_in1k_384,
    unireplknet_xl_in22k_to_in1k_384,
)
