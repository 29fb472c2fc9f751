r"""The published training settings of RepLKNet on ImageNet-1K, ImageNet-22K and MegData73M.

Source: Ding et al., "Scaling Up Your Kernels to 31x31" (CVPR 2022), section 4.1 and appendices, and the commands and
defaults of the authors' code. Where neither states a value, the recipe says so.

Command, one machine with 8 GPUs, the global batch made up by accumulation::

    torchrun --nproc-per-node 8 -m widefield train replknet_31b_in1k_120ep \
        --data.root /data/imagenet --data.batch-size 512 --trainer.accumulate-steps 4

Four such machines under SLURM, as the authors trained::

    #SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
        -m widefield train replknet_31b_in1k_120ep --data.root /data/imagenet --output runs/replknet_31b

Memory and time: not measured by us; the authors used 32 GPUs with 64 images each for ImageNet-1K and 128 with 32 each
for ImageNet-22K. ``--dry-run`` estimates both on your machine, ``--memory-limit GB`` fits the batch. Expected score:
the published one, named at each recipe, which we have not reproduced. BatchNorm statistics are shared between
processes, as in the authors' code, and averaged like the weights where the weights are.

Layer decay has the published groups: stem 0, the first two stages with the transitions after them 1 and 2, every two
pairs of blocks of the third stage from 3 to 11, its transition 11, the last stage 12, norm and head 13, each with
rate^(13 - group).
"""

from __future__ import annotations

from dataclasses import replace

from widefield.recipes._imagenet import fine_tuning, pre_training
from widefield.tasks.classification import RunConfig


def _in1k(recipe: str, epochs: int, drop_path_rate: float, ema_decay: float | None = None) -> RunConfig:
    return pre_training(
        recipe,
        "replknet_31b",
        epochs=epochs,
        drop_path_rate=drop_path_rate,
        warmup_epochs=10,
        batch_size=2048,
        ema_decay=ema_decay,
    )


def _in22k(recipe: str, model: str) -> RunConfig:
    return pre_training(
        recipe,
        model,
        epochs=90,
        drop_path_rate=0.1,
        warmup_epochs=5,
        root="imagenet-22k",
        validation_fraction=0.0,
    )


def _fine_tuning(
    recipe: str,
    model: str,
    weights: str,
    *,
    drop_path_rate: float,
    image_size: int = 384,
    batch_size: int = 512,
    lr: float = 4e-4,
    min_lr: float = 3e-4,
) -> RunConfig:
    return fine_tuning(
        recipe,
        model,
        weights,
        layer_decay=0.7,
        drop_path_rate=drop_path_rate,
        image_size=image_size,
        batch_size=batch_size,
        lr=lr,
        min_lr=min_lr,
        warmup_epochs=1,
        head_init_scale=1.0,
        ema_decay=0.9999,
    )


def replknet_31b_in1k_120ep() -> RunConfig:
    """The 120-epoch study, batch 2048; published 83.07 % (Table 5; K = 3: 82.11, 7: 82.73, 13: 83.02, 25: 83.00).

    For the other kernel sizes: ``--model.name replknet_3b`` and so on.
    """
    return _in1k("replknet_31b_in1k_120ep", 120, 0.3)


def replknet_31b_in1k_300ep() -> RunConfig:
    """The main result, batch 2048: drop path 0.5, the average of the weights evaluated; published 83.5 %."""
    return _in1k("replknet_31b_in1k_300ep", 300, 0.5, ema_decay=0.9999)


def replknet_31b_in1k_384_finetune() -> RunConfig:
    """From 224 to 384 px, batch 1024, layer decay 0.7; published 84.8 %.

    Start it from a 300-epoch run: ``--model.weights RUN_FOLDER``.
    """
    return _fine_tuning(
        "replknet_31b_in1k_384_finetune",
        "replknet_31b",
        "runs/replknet_31b_in1k_300ep",
        drop_path_rate=0.8,
        batch_size=1024,
        min_lr=1e-6,
    )


def replknet_31b_in22k_90ep() -> RunConfig:
    """Pre-training on ImageNet-22K, batch 4096, drop path 0.1; no score of its own."""
    return _in22k("replknet_31b_in22k_90ep", "replknet_31b")


def replknet_31l_in22k_90ep() -> RunConfig:
    """RepLKNet-31L, pre-training on ImageNet-22K, batch 4096, drop path 0.1; no score of its own."""
    return _in22k("replknet_31l_in22k_90ep", "replknet_31l")


def replknet_31b_in22k_to_in1k_224() -> RunConfig:
    """From ImageNet-22K to 1K at 224 px, batch 512, drop path 0.2, down to 1e-6; published 85.2 %."""
    return _fine_tuning(
        "replknet_31b_in22k_to_in1k_224",
        "replknet_31b",
        "runs/replknet_31b_in22k_90ep",
        drop_path_rate=0.2,
        image_size=224,
        min_lr=1e-6,
    )


def replknet_31b_in22k_to_in1k_384() -> RunConfig:
    """From ImageNet-22K to 1K at 384 px, batch 512, drop path 0.3, down to 3e-4; published 86.0 %."""
    return _fine_tuning(
        "replknet_31b_in22k_to_in1k_384", "replknet_31b", "runs/replknet_31b_in22k_90ep", drop_path_rate=0.3
    )


def replknet_31l_in22k_to_in1k_384() -> RunConfig:
    """RepLKNet-31L from ImageNet-22K to 1K at 384 px, batch 512, drop path 0.3, down to 3e-4; published 86.6 %."""
    return _fine_tuning(
        "replknet_31l_in22k_to_in1k_384", "replknet_31l", "runs/replknet_31l_in22k_90ep", drop_path_rate=0.3
    )


def replknet_xl_megdata73m_15ep() -> RunConfig:
    """RepLKNet-XL, pre-training on MegData73M (private, half of it pseudo-labelled), batch 2048; no score of its own.

    Stated: at most 15 epochs, drop path 0.2, no mixing, mean and standard deviation 0.5, and a learning rate below that
    of the 1K recipes. Its value is open: 2e-3 is that of the pre-training on ImageNet-22K (4e-3 for 4096 images) in
    proportion to the batch. Warm-up is open too, and 1 epoch ours; the rest are defaults of the authors' code.
    """
    base = pre_training(
        "replknet_xl_megdata73m_15ep",
        "replknet_xl",
        epochs=15,
        drop_path_rate=0.2,
        warmup_epochs=1,
        root="megdata-73m",
        validation_fraction=0.0,
        batch_size=2048,
        lr=2e-3,
        mixup=0.0,
        cutmix=0.0,
    )
    return replace(base, data=replace(base.data, mean=(0.5,) * 3, std=(0.5,) * 3))


def replknet_xl_megdata73m_to_in1k_320() -> RunConfig:
    """RepLKNet-XL from MegData73M to ImageNet-1K at 320 px, learning rate times 0.4 a stage; published 87.8 %.

    Stated: 320 px, 30 epochs, mean and standard deviation 0.5, and after BEiT a decay of 0.4 a stage with a learning
    rate above that of the other fine-tunings. Its value is open: 1e-3 is ours. Batch, warm-up, drop path and weight
    decay are open too, and are those of RepLKNet-31L's fine-tuning; the rest are defaults of the authors' code, down to
    a rate of 1e-6 and the evaluation of 224 / 256 of an image. Norm and head have the full rate, the last stage 0.4 of
    it, the stem 0.4^5.
    """
    base = _fine_tuning(
        "replknet_xl_megdata73m_to_in1k_320",
        "replknet_xl",
        "runs/replknet_xl_megdata73m_15ep",
        drop_path_rate=0.3,
        image_size=320,
        lr=1e-3,
        min_lr=1e-6,
    )
    return replace(
        base,
        data=replace(base.data, mean=(0.5,) * 3, std=(0.5,) * 3),
        optimizer=replace(base.optimizer, layer_decay=0.4, layer_decay_by="stage"),
    )


RECIPES = (
    replknet_31b_in1k_120ep,
    replknet_31b_in1k_300ep,
    replknet_31b_in1k_384_finetune,
    replknet_31b_in22k_90ep,
    replknet_31l_in22k_90ep,
    replknet_31b_in22k_to_in1k_224,
    replknet_31b_in22k_to_in1k_384,
    replknet_31l_in22k_to_in1k_384,
    replknet_xl_megdata73m_15ep,
    replknet_xl_megdata73m_to_in1k_320,
)
