"""Recipes: YAML files of a run's options, found by name, each over a base if it names one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from disk_kd.errors import ConfigError, nearest
from disk_kd.files import read_yaml, user_path
from disk_kd.old_names import new_options
from disk_kd.options import merged
from disk_kd.training.settings import OF_SCHEDULES, TrainSettings

RECIPES = Path(str(resources.files("disk_kd") / "recipes"))
CONFIG = "config.yaml"
"""The file of a run directory that repeats the run."""
PARTS = ("data", "student", "teacher", "method", "hint", "train")
"""The keys of a recipe that hold mappings."""
WRITTEN_BY = "# disk-kd "
"""What a run's config.yaml begins with, before the version."""
_REFERENCE = "recipe:"


def list_recipes() -> dict[str, str]:
    """The packaged recipes by name, with their descriptions."""
    return {name: load_recipe(path).get("description", "") for name, path in _files().items()}


def _files() -> dict[str, Path]:
    paths = sorted(path for path in RECIPES.rglob("*.yaml") if not path.name.startswith("_"))
    return {recipe_name(path): path for path in paths}


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path as it is, the config.yaml of a run directory, else a packaged recipe's name.

    Raises:
        ConfigError: there is none of that name.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if path.is_dir() and (path / CONFIG).is_file():
        return path / CONFIG
    packaged = RECIPES / f"{name}.yaml"
    if packaged.is_file():
        return packaged
    raise ConfigError(
        f"no recipe {name!r}: give a YAML file, a run directory or a name of `disk-kd list recipes`;"
        f" {nearest(name, _files())}"
    )


def recipe_name(path: Path) -> str:
    """A packaged recipe's name; of another file its stem."""
    return path.relative_to(RECIPES).with_suffix("").as_posix() if path.is_relative_to(RECIPES) else path.stem


def load_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's content, over that of the recipe that its key `base` names, if any (a path beside it).

    Args:
        path: of the YAML file.
        above: the recipes that this one is a base of.

    Raises:
        ConfigError: the file is not readable YAML, not a mapping, or its own base.
    """
    if path.resolve() in above:
        raise ConfigError(f"the recipe {path} is its own base")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe {path} must be a mapping of options, not {type(content).__name__}")
    for part in PARTS:
        if not isinstance(content.get(part, {}), dict):
            raise ConfigError(f"the key {part!r} of the recipe {path} must hold a mapping, not {content[part]!r}")
    content = new_options(content, tell=not is_run_config(path))
    base = content.pop("base", None)
    if base is None:
        return content
    below = load_recipe(path.parent / user_path(str(base)), (*above, path.resolve()))
    below.pop("published", None)  # it was published for the base
    for part in ("method", "hint"):
        names = [(options.get(part) or {}).get("name") for options in (below, content)]
        if None not in names and names[0] != names[1]:
            below.pop(part)  # another brings its own defaults
    return merged(without_schedule(below, content), content)


def without_schedule(recipe: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without the settings of its learning-rate schedule, where the options above it name another one."""
    train = recipe.get("train") or {}
    named = (above.get("train") or {}).get("schedule")
    if named is None or named == train.get("schedule", TrainSettings.schedule):
        return dict(recipe)
    left = {name: value for name, value in train.items() if name not in ("schedule", *OF_SCHEDULES)}
    return {**recipe, "train": left}


def is_run_config(path: Path) -> bool:
    """Whether a file is the configuration that a run of this package wrote, not one of another program."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().startswith(WRITTEN_BY)
    except (OSError, UnicodeDecodeError):
        return False


def referred(weights: str | None) -> str | None:
    """The recipe that a reference recipe:NAME names; None for any other weights."""
    return weights.removeprefix(_REFERENCE) if weights is not None and weights.startswith(_REFERENCE) else None


def run_folder(recipe: str, runs: Path, seed: int) -> Path:
    """The run directory of a recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    return runs / recipe_name(find_recipe(recipe)) / f"seed{seed}"


def recipe_of_run(folder: Path, runs: Path) -> str | None:
    """The packaged recipe whose run directory a folder is, or would be; None: of none."""
    if not folder.absolute().is_relative_to(runs.absolute()):
        return None
    name = folder.absolute().relative_to(runs.absolute()).parent.as_posix()
    return name if (RECIPES / f"{name}.yaml").is_file() else None


def imports_of(recipe: Mapping[str, Any]) -> list[str]:
    """The modules that a recipe has imported.

    Raises:
        ConfigError: its key `import` holds something else.
    """
    value = recipe.get("import") or []
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else None
    if names is None or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"import must be a module or a list of modules, not {value!r}")
    return names


def named_in(recipe: Mapping[str, Any]) -> set[str]:
    """All that a recipe names which may be a user's own: models, the hint and modules."""
    parts = (recipe.get(part) or {} for part in ("student", "teacher", "hint"))
    return {*imports_of(recipe), *(str(part["name"]) for part in parts if part.get("name"))}
