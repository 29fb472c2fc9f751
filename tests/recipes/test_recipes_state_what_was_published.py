"""The settings of the RepLKNet paper and code, as the specification lists them."""

from __future__ import annotations

import pytest

from widefield import list_models
from widefield._core.errors import InputError
from widefield.recipes import RECIPES, recipe
from widefield.tasks.classification import read_config


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_itself_documents_itself_and_survives_its_file(name: str, tmp_path) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert RECIPES[name].__doc__
    assert config.model.name in list_models()
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert read_config(path) == config


# name: model, drop path, image size, batch, lr, weight decay, layer decay, epochs, warm-up, mixup, cutmix, EMA, min lr
PUBLISHED = {
    "replknet_31b_in1k_120ep": ("31b", 0.3, 224, 2048, 4e-3, 0.05, None, 120, 10, 0.8, 1.0, None, 1e-6),
    "replknet_31b_in1k_300ep": ("31b", 0.5, 224, 2048, 4e-3, 0.05, None, 300, 10, 0.8, 1.0, 0.9999, 1e-6),
    "replknet_31b_in1k_384_finetune": ("31b", 0.8, 384, 1024, 4e-4, 1e-8, 0.7, 30, 1, 0, 0, 0.9999, 1e-6),
    "replknet_31b_in22k_90ep": ("31b", 0.1, 224, 4096, 4e-3, 0.05, None, 90, 5, 0.8, 1.0, None, 1e-6),
    "replknet_31l_in22k_90ep": ("31l", 0.1, 224, 4096, 4e-3, 0.05, None, 90, 5, 0.8, 1.0, None, 1e-6),
    "replknet_31b_in22k_to_in1k_224": ("31b", 0.2, 224, 512, 4e-4, 1e-8, 0.7, 30, 1, 0, 0, 0.9999, 3e-4),
    "replknet_31b_in22k_to_in1k_384": ("31b", 0.3, 384, 512, 4e-4, 1e-8, 0.7, 30, 1, 0, 0, 0.9999, 3e-4),
    "replknet_31l_in22k_to_in1k_384": ("31l", 0.3, 384, 512, 4e-4, 1e-8, 0.7, 30, 1, 0, 0, 0.9999, 3e-4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    c = recipe(name)
    stated = (
        c.model.name.removeprefix("replknet_"),
        c.model.drop_path_rate,
        c.data.image_size,
        c.data.batch_size,
        c.optimizer.lr,
        c.optimizer.weight_decay,
        c.optimizer.layer_decay,
        c.trainer.epochs,
        c.schedule.warmup_epochs,
        c.augmentation.mixup,
        c.augmentation.cutmix,
        c.ema.decay,
        c.schedule.min_lr,
    )
    assert stated == PUBLISHED[name]
    assert c.optimizer.name == "adamw"
    assert c.schedule.name == "cosine"
    assert (c.augmentation.auto_augment, c.augmentation.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert c.augmentation.label_smoothing == 0.1
    assert c.trainer.sync_batch_norm


def test_all_published_recipes_are_checked() -> None:
    assert set(PUBLISHED) == {name for name in RECIPES if name.startswith("replknet")}


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'image_folder'"):
        recipe("imagefolder")
