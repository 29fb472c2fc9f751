"""Every recipe by name."""

from __future__ import annotations

from collections.abc import Callable

from widefield._core.checks import check_name
from widefield.recipes import image_folder, quickstart, replknet
from widefield.tasks.classification import RunConfig

RECIPES: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function
    for function in (
        quickstart.quickstart,
        image_folder.image_folder,
        replknet.replknet_31b_in1k_120ep,
        replknet.replknet_31b_in1k_300ep,
        replknet.replknet_31b_in1k_384_finetune,
        replknet.replknet_31b_in22k_90ep,
        replknet.replknet_31l_in22k_90ep,
        replknet.replknet_31b_in22k_to_in1k_224,
        replknet.replknet_31b_in22k_to_in1k_384,
        replknet.replknet_31l_in22k_to_in1k_384,
    )
}


def recipe(name: str) -> RunConfig:
    """Return the config of a recipe.

    Raises:
        InputError: If there is none of that name; the nearest names are given.
    """
    check_name(name, RECIPES, "recipe")
    return RECIPES[name]()
