from __future__ import annotations

from dataclasses import replace

import pytest

from widefield._core.errors import InputError
from widefield.recipes import RECIPES, recipe
from widefield.tasks.classification.scaling import scale_to_batch


def test_learning_rates_follow_the_batch_and_epochs_stay() -> None:
    base = recipe("slak_t_in1k_300ep")
    scaled, changes = scale_to_batch(base, 512)
    assert scaled.update_batch == 512
    assert scaled.optimizer.lr == pytest.approx(4e-3 / 8)
    assert (scaled.schedule.warmup_lr, scaled.schedule.min_lr) == pytest.approx((0, 1e-6 / 8))
    assert (scaled.trainer.epochs, scaled.schedule.warmup_epochs) == (300, 20)
    assert scaled.ema.decay == pytest.approx(0.9999 ** (1 / 8), rel=1e-12)
    assert scaled.sparsity is not None
    assert scaled.sparsity.update_every == 16000
    assert (scaled.optimizer.weight_decay, scaled.augmentation) == (base.optimizer.weight_decay, base.augmentation)
    assert {change.field: (change.before, change.after) for change in changes} == {
        "data.batch_size": ("4096", "512"),
        "optimizer.lr": ("0.004", "0.0005"),
        "schedule.min_lr": ("1e-06", "1.25e-07"),
        "ema.decay": ("0.9999", "0.999987"),
        "sparsity.update_every": ("2000", "16000"),
    }


def test_a_warm_up_that_starts_above_zero_is_scaled_too() -> None:
    base = recipe("slak_t_in1k_300ep")
    scaled, changes = scale_to_batch(replace(base, schedule=replace(base.schedule, warmup_lr=1e-5)), 512)
    assert scaled.schedule.warmup_lr == pytest.approx(1e-5 / 8)
    assert ("schedule.warmup_lr", "1e-05", "1.25e-06") in [(c.field, c.before, c.after) for c in changes]


@pytest.mark.parametrize("name", RECIPES)
def test_there_and_back_is_the_recipe_again(name: str) -> None:
    base = recipe(name)
    back, _ = scale_to_batch(scale_to_batch(base, base.update_batch // 2)[0], base.update_batch)
    assert back.optimizer.lr == pytest.approx(base.optimizer.lr)
    assert back.ema.decay == pytest.approx(base.ema.decay)
    assert (back.data, back.trainer, back.sparsity) == (base.data, base.trainer, base.sparsity)


def test_its_own_batch_changes_nothing() -> None:
    base = recipe("replknet_31b_in1k_300ep")
    assert scale_to_batch(base, 2048) == (base, ())


def test_accumulated_batches_count() -> None:
    base = recipe("mobilenetv2_in1k_k3")
    base = replace(base, trainer=replace(base.trainer, accumulate_steps=4))
    scaled, _ = scale_to_batch(base, 256)
    assert (scaled.data.batch_size, scaled.trainer.accumulate_steps) == (64, 4)
    assert scaled.optimizer.lr == pytest.approx(0.1 / 4)
    assert scale_to_batch(base, 255)[0].trainer.accumulate_steps == 1
    assert scale_to_batch(base, 256, 8)[0].data.batch_size == 32


@pytest.mark.parametrize(
    ("batch", "steps", "sentence"),
    [
        (0, None, "Expected a batch of at least 1 to scale to, but got 0: give the images of one update, such as 256"),
        (
            100,
            8,
            "Expected a batch that 8 accumulated batches make up, but got 100 images: use a multiple of --trainer",
        ),
    ],
)
def test_an_impossible_batch_is_refused(batch: int, steps: int | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        scale_to_batch(recipe("quickstart"), batch, steps)
