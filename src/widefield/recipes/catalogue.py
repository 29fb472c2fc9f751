"""Every recipe by name, in groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from widefield._core.checks import check_name
from widefield.recipes import convnext, mobilenetv2, pelk, replknet, slak, unireplknet
from widefield.recipes.image_folder import image_folder
from widefield.recipes.quickstart import quickstart
from widefield.tasks.classification import RunConfig

Recipe = Callable[[], RunConfig]

GROUPS: Mapping[str, tuple[Recipe, ...]] = {
    "your own images, or none": (quickstart, image_folder),
    "RepLKNet": replknet.RECIPES,
    "MobileNetV2 with large kernels": mobilenetv2.RECIPES,
    "SLaK": slak.RECIPES,
    "PeLK": pelk.RECIPES,
    "UniRepLKNet": unireplknet.RECIPES,
    "ConvNeXt with large kernels, or taught by them": convnext.RECIPES,
}
"""Recipes of each family."""

RECIPES: dict[str, Recipe] = {function.__name__: function for functions in GROUPS.values() for function in functions}


def recipe(name: str) -> RunConfig:
    """Return the config of a recipe.

    Raises:
        InputError: If there is none of that name; the nearest names are given.
    """
    check_name(name, RECIPES, "recipe")
    return RECIPES[name]()
