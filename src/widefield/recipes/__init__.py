"""Recipes: functions that return a whole, typed run config. A run is one of them with some fields changed."""

from widefield.recipes.catalogue import GROUPS as GROUPS
from widefield.recipes.catalogue import RECIPES as RECIPES
from widefield.recipes.catalogue import recipe as recipe
