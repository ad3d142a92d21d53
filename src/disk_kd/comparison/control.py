"""The control of a recipe: the same data, student and training with another method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disk_kd.comparison.experiment import Experiment, Row
from disk_kd.errors import ConfigError
from disk_kd.recipe import find_recipe, recipe_name


def with_control(recipes: Sequence[str], seeds: int, method: str, options: Mapping[str, Any]) -> Experiment:
    """An experiment of recipes whose baseline is the first recipe with another method.

    Args:
        recipes: names or files of recipes.
        seeds: number of seeds.
        method: method of the baseline, such as ce (cross-entropy on labels alone).
        options: options of the whole comparison.

    Raises:
        ConfigError: the options set the method or hint, which would also change the baseline.
    """
    changing = next((part for part in ("method", "hint") if part in options), None)
    if changing is not None:
        raise ConfigError(f"--{changing} would also change the control of --against; write it into a recipe")
    name = f"{recipe_name(find_recipe(recipes[0]))}-against-{method}"
    description = f"{recipes[0]} with --method {method}"
    control = Row(name, recipes[0], {"method": method, "hint": None, "description": description}, folder=name)
    return Experiment((control, *(Row(recipe, recipe) for recipe in recipes)), seeds, baseline=name)
