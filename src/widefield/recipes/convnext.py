r"""ConvNeXt with large kernels, and ConvNeXt taught by networks that have them.

Source of the first: Ding et al., "Scaling Up Your Kernels to 31x31" (CVPR 2022), Table 11: ConvNeXt with kernels of 31,
29, 27 and 13, trained for 120 epochs as RepLKNet is in its own study of kernel sizes. The scores could not be had; with
large kernels T is above S with those of 7, and S above B. Whether drop path differs between the sizes is not stated.

Source of the second: Huang et al., "Are Large Kernels Better Teachers than Transformers for ConvNets?" (ICML 2023), and
the commands and defaults of the authors' code (that of SLaK). Normalised knowledge distillation is the whole loss: no
cross-entropy is added, and its own weight of the other classes and its temperature are both 1, whatever the options
``--alpha`` and ``--T`` of the commands say, which belong to plain distillation. The average of the weights is kept, the
weights themselves are scored. The student is the authors' SLaK class with kernels of 7 and of ConvNeXt's width, and so
has a BatchNorm behind each depthwise convolution.

Command, one machine with 8 GPUs, the batch made up by accumulation::

    torchrun --nproc-per-node 8 -m widefield train convnext_lk_t_in1k_120ep --data.root /data/imagenet \
        --trainer.precision bf16 --data.batch-size 512 --trainer.accumulate-steps 4

A student wants its teacher's run folder: ``--distillation.teacher runs/slak_t_in1k_300ep``.

Memory and time: not measured by us; ``--dry-run`` estimates both on your machine, ``--memory-limit GB`` fits the batch.
"""

from __future__ import annotations

from dataclasses import replace

from widefield.recipes._imagenet import pre_training
from widefield.tasks.classification import RunConfig
from widefield.tasks.distillation.config import DistillationConfig


def _large_kernels(recipe: str, variant: str) -> RunConfig:
    return pre_training(
        recipe, f"convnext_lk_{variant}", epochs=120, drop_path_rate=0.3, warmup_epochs=10, batch_size=2048
    )


def _taught(recipe: str, variant: str, batch_size: int) -> RunConfig:
    base = pre_training(
        recipe,
        f"convnext_lk_{variant}",
        epochs=300,
        drop_path_rate=0.1,
        batch_size=batch_size,
        ema_decay=0.9999,
    )
    return replace(
        base,
        # A parallel kernel that is not smaller is none, but leaves the norm.
        model=replace(base.model, kernel_sizes=(7, 7, 7, 7), options=("small_kernel_size=7",)),
        ema=replace(base.ema, evaluate=False),
        distillation=DistillationConfig(
            teacher=f"runs/slak_{variant}_in1k_300ep", methods=("nkd",), target_weight=0.0, non_target_weight=1.0
        ),
    )


def convnext_lk_t_in1k_120ep() -> RunConfig:
    """ConvNeXt-T with K = 31, 29, 27, 13 (Table 11); for ConvNeXt itself: ``--model.kernel-sizes 7 7 7 7``."""
    return _large_kernels("convnext_lk_t_in1k_120ep", "t")


def convnext_lk_s_in1k_120ep() -> RunConfig:
    """ConvNeXt-S with K = 31, 29, 27, 13 (Table 11)."""
    return _large_kernels("convnext_lk_s_in1k_120ep", "s")


def convnext_lk_b_in1k_120ep() -> RunConfig:
    """ConvNeXt-B with K = 31, 29, 27, 13 (Table 11)."""
    return _large_kernels("convnext_lk_b_in1k_120ep", "b")


def convnext_t_in1k_300ep_by_slak() -> RunConfig:
    """ConvNeXt-T taught by SLaK-T, batch 2048; published 83.1 % for one that SLaK taught in 300 epochs."""
    return _taught("convnext_t_in1k_300ep_by_slak", "t", 2048)


def convnext_s_in1k_300ep_by_slak() -> RunConfig:
    """ConvNeXt-S taught by SLaK-S, batch 4096; published 84.3 % for one that SLaK taught in 300 epochs."""
    return _taught("convnext_s_in1k_300ep_by_slak", "s", 4096)


RECIPES = (
    convnext_lk_t_in1k_120ep,
    convnext_lk_s_in1k_120ep,
    convnext_lk_b_in1k_120ep,
    convnext_t_in1k_300ep_by_slak,
    convnext_s_in1k_300ep_by_slak,
)
