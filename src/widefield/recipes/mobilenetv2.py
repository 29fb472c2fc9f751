r"""The studies on MobileNetV2 by which RepLKNet's guidelines were found.

Source: Ding et al., "Scaling Up Your Kernels to 31x31" (CVPR 2022), section 3, appendix A and Tables 2 to 4, as far as
they are known: SGD with momentum 0.9, batch 256 (8 times 32), learning rate 0.1 with a cosine, 5 epochs of warm-up, 100
epochs at 224 px, random crops and flips alone. The weight decay is not known; 4e-5 is that of MobileNetV2's own paper
(Sandler et al., 2018, section 6.1). Label smoothing is not mentioned, and off. No code was published, so that the width
and which layers get the large kernel are the network's own reading (`widefield.models.mobilenetv2_lk`): 0.75 with a
first convolution of 32 channels, which meets Table 4's parameters and MFLOPs, for all tables, since their baselines
have one score. In Table 4 the one block of width 320 has the large kernel; elsewhere all blocks without stride have it.

Command, one machine with 8 GPUs::

    torchrun --nproc-per-node 8 -m widefield train mobilenetv2_in1k_k3 --data.root /data/imagenet

Under SLURM on one machine: ``#SBATCH --nodes=1 --gpus-per-node=8`` and ``srun`` before that command.

Memory and time: not measured by us; ``--dry-run`` estimates both on your machine. Expected score: the published one,
named at each recipe, which we have not reproduced.
"""

from __future__ import annotations

from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import OptimizerConfig, ScheduleConfig, TrainerConfig
from widefield.tasks.classification import ModelConfig, RunConfig


def _study(
    recipe: str,
    kernel_sizes: tuple[int, ...],
    small_kernel_size: int | None = None,
    *,
    shortcut: bool = True,
    dilation: int = 1,
) -> RunConfig:
    # A parallel kernel that is not smaller is none.
    small = max(kernel_sizes) if small_kernel_size is None else small_kernel_size
    return RunConfig(
        recipe=recipe,
        model=ModelConfig(
            name="mobilenetv2_lk",
            kernel_sizes=kernel_sizes,
            options=(
                "width_mult=0.75",
                "scale_stem=false",
                f"small_kernel_size={small}",
                f"shortcut={str(shortcut).lower()}",
                f"dilation={[dilation] * 4}",
            ),
        ),
        data=DataConfig(root="imagenet-1k", batch_size=256, workers=8, crop_fraction=0.875),
        augmentation=AugmentationConfig(color_jitter=0.0, auto_augment=None, random_erasing=0.0, label_smoothing=0.0),
        # timm's "sgd" is Nesterov's; "momentum" is the plain one.
        optimizer=OptimizerConfig(name="momentum", lr=0.1, momentum=0.9, weight_decay=4e-5),
        schedule=ScheduleConfig(warmup_epochs=5),
        trainer=TrainerConfig(epochs=100),
    )


def mobilenetv2_in1k_k3() -> RunConfig:
    """K = 3 everywhere, the baseline; published 71.76 %."""
    return _study("mobilenetv2_in1k_k3", (3, 3, 3, 3))


def mobilenetv2_in1k_k3_no_shortcut() -> RunConfig:
    """K = 3 without shortcuts; published 68.67 % (Table 2)."""
    return _study("mobilenetv2_in1k_k3_no_shortcut", (3, 3, 3, 3), shortcut=False)


def mobilenetv2_in1k_k13() -> RunConfig:
    """K = 13 everywhere; published 72.53 % (Tables 2 and 3)."""
    return _study("mobilenetv2_in1k_k13", (13, 13, 13, 13))


def mobilenetv2_in1k_k13_no_shortcut() -> RunConfig:
    """K = 13 without shortcuts; published 53.98 % (Table 2)."""
    return _study("mobilenetv2_in1k_k13_no_shortcut", (13, 13, 13, 13), shortcut=False)


def mobilenetv2_in1k_k13_reparam() -> RunConfig:
    """K = 13 with a parallel 3 x 3; published 73.24 % (Table 3)."""
    return _study("mobilenetv2_in1k_k13_reparam", (13, 13, 13, 13), 3)


def mobilenetv2_in1k_k9() -> RunConfig:
    """K = 9 everywhere; published 72.67 % (Table 3)."""
    return _study("mobilenetv2_in1k_k9", (9, 9, 9, 9))


def mobilenetv2_in1k_k9_reparam() -> RunConfig:
    """K = 9 with a parallel 3 x 3; published 73.09 % (Table 3)."""
    return _study("mobilenetv2_in1k_k9_reparam", (9, 9, 9, 9), 3)


def mobilenetv2_in1k_last7() -> RunConfig:
    """K = 7 with a parallel 3 x 3 in the last stage alone; published 72.00 % (Table 4)."""
    return _study("mobilenetv2_in1k_last7", (3, 3, 3, 3, 3, 7), 3)


def mobilenetv2_in1k_last9() -> RunConfig:
    """K = 9 with a parallel 3 x 3 in the last stage alone; published 71.83 % (UniRepLKNet's extension, Table 2)."""
    return _study("mobilenetv2_in1k_last9", (3, 3, 3, 3, 3, 9), 3)


def mobilenetv2_in1k_last13() -> RunConfig:
    """K = 13 with a parallel 3 x 3 in the last stage alone; published 71.97 % (Table 4)."""
    return _study("mobilenetv2_in1k_last13", (3, 3, 3, 3, 3, 13), 3)


def mobilenetv2_in1k_k3_dilation4() -> RunConfig:
    """K = 3 with 4 pixels between taps, as far as K = 9 reaches (Table 12); its score could not be had."""
    return _study("mobilenetv2_in1k_k3_dilation4", (3, 3, 3, 3), dilation=4)


def mobilenetv2_in1k_k3_dilation6() -> RunConfig:
    """K = 3 with 6 pixels between taps, as far as K = 13 reaches (Table 12); its score could not be had."""
    return _study("mobilenetv2_in1k_k3_dilation6", (3, 3, 3, 3), dilation=6)


RECIPES = (
    mobilenetv2_in1k_k3,
    mobilenetv2_in1k_k3_no_shortcut,
    mobilenetv2_in1k_k13,
    mobilenetv2_in1k_k13_no_shortcut,
    mobilenetv2_in1k_k13_reparam,
    mobilenetv2_in1k_k9,
    mobilenetv2_in1k_k9_reparam,
    mobilenetv2_in1k_last7,
    mobilenetv2_in1k_last9,
    mobilenetv2_in1k_last13,
    mobilenetv2_in1k_k3_dilation4,
    mobilenetv2_in1k_k3_dilation6,
)
