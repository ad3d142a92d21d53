"""The control of a recipe: the same data, student and training, without its method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disk_kd.comparison.experiment import Experiment, Row
from disk_kd.errors import ConfigError
from disk_kd.recipe import find_recipe, recipe_name


def with_control(recipes: Sequence[str], seeds: int, method: str, options: Mapping[str, Any]) -> Experiment:
    """Recipes, and before them the first of them with another method, which is the baseline.

    Args:
        recipes: names or files.
        seeds: how many.
        method: such as ce, cross-entropy on the labels alone.
        options: of the whole comparison.

    Raises:
        ConfigError: they change the method or hint, which would also change that of the control.
    """
    changing = next((part for part in ("method", "hint") if part in options), None)
    if changing is not None:
        raise ConfigError(f"--{changing} would also change the control of --against; write it into a recipe")
    name = f"{recipe_name(find_recipe(recipes[0]))}-against-{method}"
    description = f"{recipes[0]} with --method {method}"
    control = Row(name, recipes[0], {"method": method, "hint": None, "description": description}, folder=name)
    return Experiment((control, *(Row(recipe, recipe) for recipe in recipes)), seeds, baseline=name)
