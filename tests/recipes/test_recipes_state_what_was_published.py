"""The settings of the papers and of the authors' code, as the specification lists them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from widefield import list_models
from widefield._core.errors import InputError
from widefield.recipes import GROUPS, RECIPES, recipe
from widefield.tasks.classification import read_config
from widefield.tasks.classification.card import make_classifier


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_itself_documents_itself_and_survives_its_file(name: str, tmp_path) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert RECIPES[name].__doc__
    assert config.model.name in list_models()
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert read_config(path) == config


def test_a_file_from_before_there_were_crop_modes_crops_the_centre(tmp_path) -> None:
    config = recipe("replknet_31b_in1k_300ep")
    text = config.to_yaml()
    assert "\n  crop_mode: center\n" in text
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("\n  crop_mode: center\n", "\n"))
    assert read_config(path) == config


@pytest.mark.parametrize("name", RECIPES)
def test_images_of_384_pixels_are_evaluated_whole_and_squeezed(name: str) -> None:
    data = recipe(name).data
    assert (data.crop_mode == "squash") == (data.image_size == 384)
    if data.crop_mode == "squash":
        assert data.crop_fraction == 1.0


ONE_FOR_EACH_NETWORK = {
    (model.name, model.kernel_sizes, model.options, model.head_init_scale): name
    for name, model in ((name, recipe(name).model) for name in RECIPES)
}


@pytest.mark.parametrize("name", ONE_FOR_EACH_NETWORK.values())
def test_every_network_can_be_made_as_its_recipe_says(name: str) -> None:
    with torch.device("meta"):
        make_classifier(recipe(name).model, 10)


MIXED, PLAIN = (0.8, 1.0), (0.0, 0.0)

# name: model, drop path, image size, batch, lr, weight decay, layer decay, epochs, warm-up, mixing, EMA, min lr
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "replknet_31b_in1k_120ep": ("replknet_31b", 0.3, 224, 2048, 4e-3, 0.05, None, 120, 10, MIXED, None, 1e-6),
    "replknet_31b_in1k_300ep": ("replknet_31b", 0.5, 224, 2048, 4e-3, 0.05, None, 300, 10, MIXED, 0.9999, 1e-6),
    "replknet_31b_in1k_384_finetune": ("replknet_31b", 0.8, 384, 1024, 4e-4, 1e-8, 0.7, 30, 1, PLAIN, 0.9999, 1e-6),
    "replknet_31b_in22k_90ep": ("replknet_31b", 0.1, 224, 4096, 4e-3, 0.05, None, 90, 5, MIXED, None, 1e-6),
    "replknet_31l_in22k_90ep": ("replknet_31l", 0.1, 224, 4096, 4e-3, 0.05, None, 90, 5, MIXED, None, 1e-6),
    "replknet_31b_in22k_to_in1k_224": ("replknet_31b", 0.2, 224, 512, 4e-4, 1e-8, 0.7, 30, 1, PLAIN, 0.9999, 1e-6),
    "replknet_31b_in22k_to_in1k_384": ("replknet_31b", 0.3, 384, 512, 4e-4, 1e-8, 0.7, 30, 1, PLAIN, 0.9999, 3e-4),
    "replknet_31l_in22k_to_in1k_384": ("replknet_31l", 0.3, 384, 512, 4e-4, 1e-8, 0.7, 30, 1, PLAIN, 0.9999, 3e-4),
    "replknet_xl_megdata73m_15ep": ("replknet_xl", 0.2, 224, 2048, 2e-3, 0.05, None, 15, 1, PLAIN, None, 1e-6),
    "replknet_xl_megdata73m_to_in1k_320": ("replknet_xl", 0.3, 320, 512, 1e-3, 1e-8, 0.4, 30, 1, PLAIN, 0.9999, 1e-6),
    "slak_t_in1k_120ep": ("slak_t", 0.1, 224, 4096, 4e-3, 0.05, None, 120, 20, MIXED, 0.9999, 1e-6),
    "slak_s_in1k_120ep": ("slak_s", 0.4, 224, 4096, 4e-3, 0.05, None, 120, 20, MIXED, 0.9999, 1e-6),
    "slak_b_in1k_120ep": ("slak_b", 0.5, 224, 4096, 4e-3, 0.05, None, 120, 20, MIXED, 0.9999, 1e-6),
    "slak_t_in1k_300ep": ("slak_t", 0.1, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, 0.9999, 1e-6),
    "slak_s_in1k_300ep": ("slak_s", 0.4, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, 0.9999, 1e-6),
    "slak_b_in1k_300ep": ("slak_b", 0.5, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, 0.9999, 1e-6),
    "slak_b_in1k_384_finetune": ("slak_b", 0.8, 384, 512, 5e-5, 1e-8, 0.7, 30, 0, PLAIN, None, 1e-6),
    "pelk_t_in1k_120ep": ("pelk_t", 0.1, 224, 4096, 4e-3, 0.05, None, 120, 20, MIXED, 0.9999, 1e-6),
    "pelk_t_101_in1k_120ep": ("pelk_t_101", 0.1, 224, 4096, 4e-3, 0.05, None, 120, 20, MIXED, 0.9999, 1e-6),
    "pelk_t_in1k_120ep_dense": ("pelk_t", 0.1, 224, 4096, 4e-3, 0.05, None, 120, 20, MIXED, 0.9999, 1e-6),
    "pelk_t_in1k_300ep": ("pelk_t", 0.1, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, 0.9999, 1e-6),
    "pelk_s_in1k_300ep": ("pelk_s", 0.4, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, 0.9999, 1e-6),
    "pelk_b_in1k_300ep": ("pelk_b", 0.5, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, 0.9999, 1e-6),
    "pelk_b_101_in1k_300ep": ("pelk_b_101", 0.5, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, 0.9999, 1e-6),
    "pelk_b_in1k_384_finetune": ("pelk_b", 0.8, 384, 512, 5e-5, 1e-8, 0.7, 30, 0, PLAIN, None, 1e-6),
    "pelk_b_101_in1k_384_finetune": ("pelk_b_101", 0.8, 384, 512, 5e-5, 1e-8, 0.7, 30, 0, PLAIN, None, 1e-6),
    "unireplknet_a_in1k_300ep": ("unireplknet_a", 0, 224, 4096, 4e-3, 0.05, None, 300, 20, (0.3, 0.3), None, 1e-6),
    "unireplknet_f_in1k_300ep": ("unireplknet_f", 0, 224, 4096, 4e-3, 0.05, None, 300, 20, (0.3, 0.3), None, 1e-6),
    "unireplknet_p_in1k_300ep": ("unireplknet_p", 0.1, 224, 4096, 4e-3, 0.05, None, 300, 20, (0.3, 0.3), None, 1e-6),
    "unireplknet_n_in1k_300ep": ("unireplknet_n", 0.1, 224, 4096, 4e-3, 0.05, None, 300, 20, (0.5, 0.5), None, 1e-6),
    "unireplknet_t_in1k_300ep": ("unireplknet_t", 0.2, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, None, 1e-6),
    "unireplknet_s_in1k_300ep": ("unireplknet_s", 0.4, 224, 4096, 4e-3, 0.05, None, 300, 20, MIXED, None, 1e-6),
    "unireplknet_vanilla_in1k_100ep": ("unireplknet_s", 0.1, 224, 4096, 4e-3, 0.05, None, 100, 20, MIXED, None, 1e-6),
    "unireplknet_s_in22k_90ep": ("unireplknet_s", 0.1, 224, 4096, 4e-3, 0.05, None, 90, 5, MIXED, None, 1e-6),
    "unireplknet_b_in22k_90ep": ("unireplknet_b", 0.1, 224, 4096, 4e-3, 0.05, None, 90, 5, MIXED, None, 1e-6),
    "unireplknet_l_in22k_90ep": ("unireplknet_l", 0.1, 192, 4096, 1e-3, 0.05, None, 90, 5, MIXED, None, 1e-6),
    "unireplknet_xl_in22k_90ep": ("unireplknet_xl", 0.2, 192, 4096, 1e-3, 0.05, None, 90, 5, MIXED, None, 1e-6),
    "unireplknet_s_in22k_to_in1k_384": ("unireplknet_s", 0.2, 384, 512, 5e-5, 1e-8, 0.8, 30, 0, PLAIN, None, 1e-6),
    "unireplknet_b_in22k_to_in1k_384": ("unireplknet_b", 0.2, 384, 512, 5e-5, 1e-8, 0.8, 30, 0, PLAIN, None, 1e-6),
    "unireplknet_l_in22k_to_in1k_384": ("unireplknet_l", 0.3, 384, 512, 5e-5, 1e-8, 0.8, 20, 0, PLAIN, 0.9999, 1e-6),
    "unireplknet_xl_in22k_to_in1k_384": ("unireplknet_xl", 0.3, 384, 512, 5e-5, 1e-8, 0.8, 20, 0, PLAIN, 0.9999, 1e-6),
    "convnext_lk_t_in1k_120ep": ("convnext_lk_t", 0.3, 224, 2048, 4e-3, 0.05, None, 120, 10, MIXED, None, 1e-6),
    "convnext_lk_s_in1k_120ep": ("convnext_lk_s", 0.3, 224, 2048, 4e-3, 0.05, None, 120, 10, MIXED, None, 1e-6),
    "convnext_lk_b_in1k_120ep": ("convnext_lk_b", 0.3, 224, 2048, 4e-3, 0.05, None, 120, 10, MIXED, None, 1e-6),
    "convnext_t_in1k_300ep_by_slak": (
        "convnext_lk_t",
        0.1,
        224,
        2048,
        4e-3,
        0.05,
        None,
        300,
        20,
        MIXED,
        0.9999,
        1e-6,
    ),
    "convnext_s_in1k_300ep_by_slak": (
        "convnext_lk_s",
        0.1,
        224,
        4096,
        4e-3,
        0.05,
        None,
        300,
        20,
        MIXED,
        0.9999,
        1e-6,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    c = recipe(name)
    stated = (
        c.model.name,
        c.model.drop_path_rate,
        c.data.image_size,
        c.update_batch,
        c.optimizer.lr,
        c.optimizer.weight_decay,
        c.optimizer.layer_decay,
        c.trainer.epochs,
        c.schedule.warmup_epochs,
        (c.augmentation.mixup, c.augmentation.cutmix),
        c.ema.decay,
        c.schedule.min_lr,
    )
    assert stated == PUBLISHED[name]
    assert c.optimizer.name == "adamw"
    assert c.schedule.name == "cosine"
    assert (c.augmentation.auto_augment, c.augmentation.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    is_large_unireplknet = name in ("unireplknet_l_in22k_to_in1k_384", "unireplknet_xl_in22k_to_in1k_384")
    assert c.augmentation.label_smoothing == (0.3 if is_large_unireplknet else 0.1)
    assert c.trainer.sync_batch_norm == (not name.startswith("unireplknet"))
    assert (c.augmentation.random_erasing_mode, c.augmentation.random_erasing_count) == ("pixel", 1)
    assert c.schedule.warmup_lr == 0
    assert c.ema.evaluate == (not name.startswith(("convnext_t", "convnext_s")))


# name: kernel sizes, parallel kernel if any, shortcut, dilation (MobileNetV2's Tables 2 to 4 and 12)
STUDIES: dict[str, tuple[tuple[int, ...], str, str, int]] = {
    "mobilenetv2_in1k_k3": ((3, 3, 3, 3), "", "true", 1),
    "mobilenetv2_in1k_k3_no_shortcut": ((3, 3, 3, 3), "", "false", 1),
    "mobilenetv2_in1k_k13": ((13, 13, 13, 13), "", "true", 1),
    "mobilenetv2_in1k_k13_no_shortcut": ((13, 13, 13, 13), "", "false", 1),
    "mobilenetv2_in1k_k13_reparam": ((13, 13, 13, 13), "3", "true", 1),
    "mobilenetv2_in1k_k9": ((9, 9, 9, 9), "", "true", 1),
    "mobilenetv2_in1k_k9_reparam": ((9, 9, 9, 9), "3", "true", 1),
    "mobilenetv2_in1k_last7": ((3, 3, 3, 3, 3, 7), "3", "true", 1),
    "mobilenetv2_in1k_last9": ((3, 3, 3, 3, 3, 9), "3", "true", 1),
    "mobilenetv2_in1k_last13": ((3, 3, 3, 3, 3, 13), "3", "true", 1),
    "mobilenetv2_in1k_k3_dilation4": ((3, 3, 3, 3), "", "true", 4),
    "mobilenetv2_in1k_k3_dilation6": ((3, 3, 3, 3), "", "true", 6),
}


@pytest.mark.parametrize("name", STUDIES)
def test_published_studies_on_mobilenetv2(name: str) -> None:
    c, (kernel_sizes, small, shortcut, dilation) = recipe(name), STUDIES[name]
    assert c.model.name == "mobilenetv2_lk"
    assert c.model.kernel_sizes == kernel_sizes
    assert c.model.options[3] == f"shortcut={shortcut}"
    with torch.device("meta"):
        model = make_classifier(c.model, 1000)
    kernels = {tuple(p.shape[2:]) for name, p in model.named_parameters() if ".large." in name}
    parallel = {tuple(p.shape[2:]) for name, p in model.named_parameters() if ".small." in name and p.ndim == 4}
    assert max(kernels, default=(3, 3)) == (max(kernel_sizes),) * 2
    assert parallel == ({(int(small),) * 2} if small else set())
    gaps = {module.dilation[0] for module in model.modules() if isinstance(module, nn.Conv2d)}
    assert gaps == {1, dilation}
    # Table 4's parameters of the whole network, its own kernels and the norms of the parallel ones left out.
    merged = sum(p.numel() for name, p in model.named_parameters() if ".small." not in name)
    more = sum(p.numel() - 9 * p.shape[0] for name, p in model.named_parameters() if ".large." in name and p.ndim == 4)
    assert f"{(merged - more) / 1e6:.2f}" == "2.64"
    # timm's "momentum" is SGD without Nesterov's look ahead.
    assert (c.optimizer.name, c.optimizer.momentum, c.optimizer.lr) == ("momentum", 0.9, 0.1)
    assert (c.update_batch, c.trainer.epochs, c.schedule.warmup_epochs, c.schedule.name) == (256, 100, 5, "cosine")
    a = c.augmentation
    assert (a.auto_augment, a.color_jitter, a.random_erasing, a.mixup, a.cutmix) == (None, 0, 0, 0, 0)
    assert (a.horizontal_flip, a.crop_scale) == (0.5, (0.08, 1.0))


def test_all_published_recipes_are_checked() -> None:
    ours = {function.__name__ for function in GROUPS["your own images, or none"]}
    assert {*PUBLISHED, *STUDIES} == set(RECIPES) - ours


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith(("slak", "pelk"))])
def test_slak_and_pelk_train_sparse_as_published(name: str) -> None:
    sparsity = recipe(name).sparsity
    if name == "pelk_t_in1k_120ep_dense":
        assert sparsity is None
        return
    assert sparsity is not None
    assert (sparsity.prune, sparsity.grow, sparsity.which) == ("magnitude", "random", "matrices")
    if name.endswith("finetune"):
        assert (sparsity.allocation, sparsity.update_every) == ("nonzero", None)
        return
    assert (sparsity.allocation, sparsity.snip_batches, sparsity.sparsity) == ("snip", 1, 0.4)
    assert (sparsity.schedule, sparsity.min_prune_fraction) == ("cosine", 0.005)
    is_tiny = "_t_" in name
    assert (sparsity.update_every, sparsity.prune_fraction) == ((2000, 0.5) if is_tiny else (100, 0.3))


def test_the_other_families_train_dense() -> None:
    sparse = {name for name in RECIPES if recipe(name).sparsity is not None}
    assert {name.split("_")[0] for name in sparse} == {"slak", "pelk"}


def test_a_new_head_starts_small_where_that_was_published() -> None:
    scaled = {name for name in RECIPES if recipe(name).model.head_init_scale != 1}
    assert scaled == {name for name in RECIPES if "finetun" in name or "to_in1k" in name} - {
        name for name in RECIPES if name.startswith("replknet")
    }
    assert {recipe(name).model.head_init_scale for name in scaled} == {0.001}


def test_fine_tuning_starts_from_the_run_of_another_recipe_of_the_same_network() -> None:
    for name in RECIPES:
        weights = recipe(name).model.weights
        if weights is not None:
            assert recipe(weights.removeprefix("runs/")).model.name == recipe(name).model.name


def test_the_extra_large_replknet_sees_images_normalised_by_halves() -> None:
    for name in ("replknet_xl_megdata73m_15ep", "replknet_xl_megdata73m_to_in1k_320"):
        assert (recipe(name).data.mean, recipe(name).data.std) == ((0.5,) * 3, (0.5,) * 3)


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'image_folder'"):
        recipe("imagefolder")
