"""The published training settings of RepLKNet on ImageNet-1K and ImageNet-22K.

Source: Ding et al., "Scaling Up Your Kernels to 31x31" (CVPR 2022), section 4.1 and appendices, and the commands and
defaults of the authors' code. Where neither states a value, the recipe says so.

Command, one machine with 8 GPUs, the global batch made up by accumulation::

    torchrun --nproc-per-node 8 -m widefield train replknet_31b_in1k_120ep \
        --data.root /data/imagenet --data.batch-size 512 --trainer.accumulate-steps 4

Cost: not measured by us; the authors used 32 GPUs with 64 images each for ImageNet-1K and 128 with 32 each for
ImageNet-22K. Expected score: the published one, named at each recipe, which we have not reproduced. BatchNorm
statistics are shared between processes, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import replace

from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import EmaConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from widefield.tasks.classification import ModelConfig, RunConfig

_NO_MIXING = AugmentationConfig(mixup=0.0, cutmix=0.0)


def replknet_31b_in1k_120ep() -> RunConfig:
    """The 120-epoch study, batch 2048; published 83.07 % (Table 5; K = 3: 82.11, 7: 82.73, 13: 83.02, 25: 83.00).

    For the other kernel sizes: ``--model.name replknet_3b`` and so on.
    """
    return RunConfig(
        recipe="replknet_31b_in1k_120ep",
        model=ModelConfig(name="replknet_31b", drop_path_rate=0.3),
        data=DataConfig(root="imagenet-1k", batch_size=2048, workers=8, crop_fraction=0.875),
        augmentation=AugmentationConfig(mixup=0.8, cutmix=1.0),
        optimizer=OptimizerConfig(lr=4e-3, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=10),
        trainer=TrainerConfig(epochs=120),
    )


def replknet_31b_in1k_300ep() -> RunConfig:
    """The main result, batch 2048: drop path 0.5, the average of the weights evaluated; published 83.5 %."""
    base = replknet_31b_in1k_120ep()
    return replace(
        base,
        recipe="replknet_31b_in1k_300ep",
        model=replace(base.model, drop_path_rate=0.5),
        ema=EmaConfig(decay=0.9999),
        trainer=TrainerConfig(epochs=300),
    )


def replknet_31b_in1k_384_finetune() -> RunConfig:
    """From 224 to 384 px, batch 1024, layer decay 0.7; published 84.8 %.

    Start it from a 300-epoch run: ``--model.weights RUN_FOLDER``.
    """
    base = replknet_31b_in1k_120ep()
    return replace(
        base,
        recipe="replknet_31b_in1k_384_finetune",
        model=ModelConfig(name="replknet_31b", drop_path_rate=0.8, weights="runs/replknet_31b_in1k_300ep"),
        data=replace(base.data, image_size=384, batch_size=1024, crop_fraction=1.0),
        augmentation=_NO_MIXING,
        optimizer=OptimizerConfig(lr=4e-4, weight_decay=1e-8, layer_decay=0.7),
        schedule=ScheduleConfig(warmup_epochs=1),
        ema=EmaConfig(decay=0.9999),
        trainer=TrainerConfig(epochs=30),
    )


def replknet_31b_in22k_90ep() -> RunConfig:
    """Pre-training on ImageNet-22K, batch 4096, drop path 0.1; no score of its own.

    Mixup and cutmix as in the ImageNet-1K recipes; the source does not say otherwise.
    """
    base = replknet_31b_in1k_120ep()
    return replace(
        base,
        recipe="replknet_31b_in22k_90ep",
        model=ModelConfig(name="replknet_31b", drop_path_rate=0.1),
        data=replace(base.data, root="imagenet-22k", batch_size=4096),
        schedule=ScheduleConfig(warmup_epochs=5),
        trainer=TrainerConfig(epochs=90),
    )


def replknet_31l_in22k_90ep() -> RunConfig:
    """The same for RepLKNet-31L."""
    base = replknet_31b_in22k_90ep()
    return replace(base, recipe="replknet_31l_in22k_90ep", model=replace(base.model, name="replknet_31l"))


def replknet_31b_in22k_to_in1k_224() -> RunConfig:
    """From ImageNet-22K to 1K at 224 px, batch 512, drop path 0.2; published 85.2 %.

    Warm-up, mixing and averaging are those of the 384-px fine-tuning on ImageNet-1K; the source states none here.
    """
    base = replknet_31b_in1k_384_finetune()
    return replace(
        base,
        recipe="replknet_31b_in22k_to_in1k_224",
        model=replace(base.model, drop_path_rate=0.2, weights="runs/replknet_31b_in22k_90ep"),
        data=replace(base.data, image_size=224, batch_size=512, crop_fraction=0.875),
        schedule=ScheduleConfig(warmup_epochs=1, min_lr=3e-4),
    )


def replknet_31b_in22k_to_in1k_384() -> RunConfig:
    """From ImageNet-22K to 1K at 384 px, batch 512, drop path 0.3; published 86.0 %."""
    base = replknet_31b_in22k_to_in1k_224()
    return replace(
        base,
        recipe="replknet_31b_in22k_to_in1k_384",
        model=replace(base.model, drop_path_rate=0.3),
        data=replace(base.data, image_size=384, crop_fraction=1.0),
    )


def replknet_31l_in22k_to_in1k_384() -> RunConfig:
    """The same for RepLKNet-31L; published 86.6 %."""
    base = replknet_31b_in22k_to_in1k_384()
    return replace(
        base,
        recipe="replknet_31l_in22k_to_in1k_384",
        model=replace(base.model, name="replknet_31l", weights="runs/replknet_31l_in22k_90ep"),
    )
