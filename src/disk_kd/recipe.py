"""Recipes: YAML files of a run's options, found by name, each over its bases.

The packaged recipes of a table are composed. A pair file `FOLDER/_pairs/PAIR.yaml` holds data, models and training,
and under `recipes` a row for each method. A method file `FOLDER/_methods/METHOD.yaml` holds the method's options. The
recipe `FOLDER/PAIR/METHOD` is the pair's options, with those of the method over them, and those of the row over both.
Where a student has several teachers, a row is called TEACHER-METHOD, and `FOLDER/_teachers/TEACHER.yaml` lies between
pair and method.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from disk_kd.errors import ConfigError, nearest
from disk_kd.files import read_yaml, user_path
from disk_kd.old_names import new_options
from disk_kd.options import merged
from disk_kd.training.settings import OF_SCHEDULES, TrainSettings

RECIPES = Path(str(resources.files("disk_kd") / "recipes"))
TUNE = "tune"
"""The key of a recipe that holds the search space of `disk-kd tune`. Other commands ignore it."""
CONFIG = "config.yaml"
"""The file of a run directory that repeats the run."""
PARTS = ("data", "student", "teacher", "method", "hint", "train")
"""The keys of a recipe that hold mappings."""
WRITTEN_BY = "# disk-kd "
"""What a run's config.yaml begins with, before the version."""
_REFERENCE = "recipe:"
_PAIRS, _TEACHERS, _METHODS = "_pairs", "_teachers", "_methods"
_DESCRIPTION = "{base}"
"""In a description: that of the base."""


_OF_SEVERAL = frozenset({"store", "combine"})
"""Options of several teachers together, beside their list."""
_OF_ONE = frozenset({"name", "weights", "pretrained"})
"""Options that name one teacher."""


def list_recipes() -> dict[str, str]:
    """The packaged recipes by name, with their descriptions."""
    return {name: load_recipe(path).get("description", "") for name, path in _files().items()}


def _files() -> dict[str, Path]:
    files = {path for path in RECIPES.rglob("*.yaml") if "/_" not in path.relative_to(RECIPES.parent).as_posix()}
    composed = {_row_path(pair, row) for pair in RECIPES.rglob(f"{_PAIRS}/*.yaml") for row in _rows(pair)}
    return {recipe_name(path): path for path in sorted(files | composed)}


def _row_path(pair: Path, row: str) -> Path:
    """Where the recipe of a pair file's row would be, if it were a file of its own."""
    return pair.parent.parent / pair.stem / f"{row}.yaml"


def _rows(pair: Path) -> dict[str, Any]:
    return _packaged(pair).get("recipes", {}) if pair.is_file() else {}


def _row(path: Path) -> dict[str, Any] | None:
    """The content of a packaged recipe that is a row of a pair file; None: the path is of no row."""
    if not path.is_relative_to(RECIPES):
        return None
    folder = path.parent.parent
    pair = folder / _PAIRS / f"{path.parent.name}.yaml"
    rows = _rows(pair)
    if path.stem not in rows:
        return None
    teacher, _, method = path.stem.partition("-")
    bases = [pair, folder / _METHODS / f"{path.stem}.yaml"]
    if (of_teacher := folder / _TEACHERS / f"{teacher}.yaml").is_file():
        bases[1:] = [of_teacher, folder / _METHODS / f"{method}.yaml"]
    return {"base": [str(base) for base in bases], **(rows[path.stem] or {})}


def _is_packaged(path: Path) -> bool:
    return path.is_file() or _row(path) is not None


@cache
def _packaged(path: Path) -> Any:
    return read_yaml(path)


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path as it is, the config.yaml of a run directory, else a packaged recipe's name.

    A packaged recipe that is composed is no file, and has the path that its file would have; `load_recipe` takes it.

    Raises:
        ConfigError: there is none of that name.
    """
    path = user_path(name)
    if path.is_file():
        return path
    if path.is_dir() and (path / CONFIG).is_file():
        return path / CONFIG
    packaged = RECIPES / f"{name}.yaml"
    if _is_packaged(packaged):
        return packaged
    raise ConfigError(
        f"no recipe {name!r}: give a YAML file, a run directory or a name of `disk-kd list recipes`;"
        f" {nearest(name, _files())}"
    )


def recipe_name(path: Path) -> str:
    """A packaged recipe's name; of another file its stem."""
    return path.relative_to(RECIPES).with_suffix("").as_posix() if path.is_relative_to(RECIPES) else path.stem


def load_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's content, over that of the recipes that its key `base` names.

    A base is a path, taken from the recipe's folder, or the name of a packaged recipe. Of several, in a list, the later
    lie over the earlier.

    Args:
        path: of the YAML file, or of a composed recipe (`find_recipe`).
        above: the recipes that this one is a base of.

    Raises:
        ConfigError: the file is not readable YAML, not a mapping, or its own base.
    """
    if path.resolve() in above:
        raise ConfigError(f"the recipe {path} is its own base")
    content = _content(path)
    content.pop("recipes", None)
    below: dict[str, Any] = {}
    for base in _listed(content.pop("base", None)):
        below = _over(below, load_recipe(_base_path(path, base), (*above, path.resolve())))
        below.pop("published", None)  # it was published for the base
    return _over(below, content)


def _content(path: Path) -> dict[str, Any]:
    """A recipe without its bases, new names in the place of old ones."""
    packaged = path.is_relative_to(RECIPES)
    content = deepcopy(_row(path) or _packaged(path)) if packaged else read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe {path} must be a mapping of options, not {type(content).__name__}")
    content = with_members(content)
    for part in PARTS:
        if not isinstance(content.get(part, {}), dict):
            raise ConfigError(f"the key {part!r} of the recipe {path} must hold a mapping, not {content[part]!r}")
    return new_options(content, tell=not is_run_config(path))


def _listed(base: Any) -> list[str]:
    """A recipe's bases.

    Raises:
        ConfigError: its key `base` holds something else.
    """
    names = [] if base is None else base if isinstance(base, list) else [base]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"base must be a recipe or a list of recipes, not {base!r}")
    return names


def _base_path(path: Path, base: str) -> Path:
    beside = path.parent / user_path(base)
    packaged = RECIPES / f"{base}.yaml"
    return packaged if not beside.is_file() and _is_packaged(packaged) else beside


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A recipe over another: a method, hint or schedule of another name brings its own defaults."""
    below, above = dict(below), dict(above)
    for part in ("method", "hint"):
        names = [(options.get(part) or {}).get("name") for options in (below, above)]
        if None not in names and names[0] != names[1]:
            below.pop(part)
    if "description" in below and isinstance(above.get("description"), str):
        above["description"] = above["description"].replace(_DESCRIPTION, str(below["description"]))
    return merged(without_teacher(without_schedule(below, above), above), above)


def without_schedule(recipe: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without the settings of its learning-rate schedule, where the options above it name another one."""
    train, over = recipe.get("train") or {}, above.get("train")
    named = over.get("schedule") if isinstance(over, Mapping) else None
    if named is None or named == train.get("schedule", TrainSettings.schedule):
        return dict(recipe)
    left = {name: value for name, value in train.items() if name not in ("schedule", *OF_SCHEDULES)}
    return {**recipe, "train": left}


def with_members(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same options, with a list of teachers as the option `members` of the part `teacher`."""
    teacher = tree.get("teacher")
    return {**tree, "teacher": {"members": teacher}} if isinstance(teacher, list | tuple) else dict(tree)


def without_teacher(recipe: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without its teacher, where the options above it name several teachers in the place of one, or one in
    the place of several.
    """
    below, over = recipe.get("teacher"), above.get("teacher")
    if not isinstance(below, Mapping) or not isinstance(over, Mapping):
        return dict(recipe)
    if "members" in over:
        return {**recipe, "teacher": {key: below[key] for key in below.keys() & _OF_SEVERAL}}
    if "members" in below and over.keys() & _OF_ONE:
        return {**recipe, "teacher": {key: below[key] for key in below.keys() & {"store"}}}
    return dict(recipe)


def teachers_in(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The options of each teacher that a recipe names."""
    teacher = with_members(recipe).get("teacher") or {}
    members = teacher.get("members", [teacher]) if isinstance(teacher, Mapping) else []
    named = [{"name": member} if isinstance(member, str) else member for member in members]
    return [member for member in named if isinstance(member, Mapping)]


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
    return name if _is_packaged(RECIPES / f"{name}.yaml") else None


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
    """All that a recipe names which may be a user's own: models, the data, the hint and modules."""
    parts = [*(recipe.get(part) or {} for part in ("student", "data", "hint")), *teachers_in(recipe)]
    return {*imports_of(recipe), *(str(part["name"]) for part in parts if part.get("name"))}
