"""What the papers' ImageNet recipes share: AdamW with a cosine, RandAugment, erasing and smoothed labels."""

from __future__ import annotations

from widefield.data import AugmentationConfig, DataConfig
from widefield.engine import EmaConfig, OptimizerConfig, ScheduleConfig, TrainerConfig
from widefield.sparsity.config import SparsityConfig
from widefield.tasks.classification import ModelConfig, RunConfig


def pre_training(
    recipe: str,
    model: str,
    *,
    epochs: int,
    drop_path_rate: float,
    warmup_epochs: int = 20,
    root: str = "imagenet-1k",
    validation_fraction: float = DataConfig.validation_fraction,
    image_size: int = 224,
    batch_size: int = 4096,
    lr: float = 4e-3,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    ema_decay: float | None = None,
    sync_batch_norm: bool = True,
    sparsity: SparsityConfig | None = None,
) -> RunConfig:
    """Return a run from random weights; the defaults are those of ConvNeXt's recipe, which its successors took over.

    Args:
        recipe: Its name.
        model: The network.
        epochs: Passes over the data.
        drop_path_rate: Of the last block.
        warmup_epochs: Epochs of linear rise.
        root: Where the images are.
        validation_fraction: Share of the training images held back where the data have no validation split.
        image_size: In pixels.
        batch_size: Images behind one update.
        lr: Peak learning rate.
        mixup: Its alpha.
        cutmix: Its alpha.
        ema_decay: Of the average of the weights; none for no average.
        sync_batch_norm: Whether processes share the statistics of BatchNorm.
        sparsity: Of the weights; none for a dense network.
    """
    return RunConfig(
        recipe=recipe,
        model=ModelConfig(name=model, drop_path_rate=drop_path_rate),
        data=DataConfig(
            root=root,
            image_size=image_size,
            batch_size=batch_size,
            workers=8,
            validation_fraction=validation_fraction,
            crop_fraction=0.875,
        ),
        augmentation=AugmentationConfig(mixup=mixup, cutmix=cutmix),
        optimizer=OptimizerConfig(lr=lr, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=warmup_epochs),
        ema=EmaConfig(decay=ema_decay),
        trainer=TrainerConfig(epochs=epochs, sync_batch_norm=sync_batch_norm),
        sparsity=sparsity,
    )


def fine_tuning(
    recipe: str,
    model: str,
    weights: str,
    *,
    layer_decay: float,
    drop_path_rate: float,
    epochs: int = 30,
    image_size: int = 384,
    batch_size: int = 512,
    lr: float = 5e-5,
    min_lr: float = 1e-6,
    warmup_epochs: int = 0,
    label_smoothing: float = 0.1,
    head_init_scale: float = 0.001,
    ema_decay: float | None = None,
    sync_batch_norm: bool = True,
    sparsity: SparsityConfig | None = None,
) -> RunConfig:
    """Return a run on ImageNet-1K from trained weights, without mixing and almost without weight decay.

    The defaults are those of ConvNeXt's fine-tuning. Images of 384 pixels and more are evaluated whole, squeezed to a
    square, as the code of ConvNeXt, RepLKNet and UniRepLKNet does.

    Args:
        recipe: Its name.
        model: The network.
        weights: Where to start from; a head for other classes is made anew.
        layer_decay: Factor of the learning rate from each layer to the one below.
        drop_path_rate: Of the last block.
        epochs: Passes over the data.
        image_size: In pixels.
        batch_size: Images behind one update.
        lr: Peak learning rate.
        min_lr: Learning rate at the end.
        warmup_epochs: Epochs of linear rise.
        label_smoothing: Share of the target spread over all classes.
        head_init_scale: Factor on the first weights of a new head.
        ema_decay: Of the average of the weights; none for no average.
        sync_batch_norm: Whether processes share the statistics of BatchNorm.
        sparsity: Of the weights; none for a dense network.
    """
    return RunConfig(
        recipe=recipe,
        model=ModelConfig(name=model, weights=weights, drop_path_rate=drop_path_rate, head_init_scale=head_init_scale),
        data=DataConfig(
            root="imagenet-1k",
            image_size=image_size,
            batch_size=batch_size,
            workers=8,
            crop_fraction=1.0 if image_size >= 384 else 0.875,
            crop_mode="squash" if image_size >= 384 else "center",
        ),
        augmentation=AugmentationConfig(label_smoothing=label_smoothing),
        optimizer=OptimizerConfig(lr=lr, weight_decay=1e-8, layer_decay=layer_decay),
        schedule=ScheduleConfig(warmup_epochs=warmup_epochs, min_lr=min_lr),
        ema=EmaConfig(decay=ema_decay),
        trainer=TrainerConfig(epochs=epochs, sync_batch_norm=sync_batch_norm),
        sparsity=sparsity,
    )
