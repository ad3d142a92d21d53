"""Experiments as data: rows of recipe and options, and the settings to try for each row."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from disk_kd.errors import ConfigError, nearest
from disk_kd.files import read_yaml, user_path
from disk_kd.options import dotted, nested

_KEYS = {"description", "seeds", "tuning_seeds", "baseline", "all", "rows"}
_OWN = _KEYS - {"description"}
"""Keys that recipes do not have."""
_OF_ROW = {"recipe", "start", "grid"}
_OF_RUNS = {"train.seed", "output", "runs"}
"""Options that a comparison sets for each run."""
_MOST_SEEDS = 1_000
_MOST_SETTINGS = 10_000


@dataclass(frozen=True, eq=False)
class Row:
    """One setting of a row of the table.

    Args:
        group: name of the row. The table shows the setting of each group that is best on validation.
        recipe: name or file of the recipe.
        options: options of this setting, in the form of a recipe.
        folder: name of its folder in the folder of all runs; None: the recipe gives it.
        start: the row whose students this row starts from, seed by seed; None: the recipe gives the start.
    """

    group: str
    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    start: str | None = None

    @property
    def name(self) -> str:
        """The unique name of the row."""
        return self.folder or self.group

    @property
    def changed(self) -> str:
        """The options that the row changes in its recipe's method, or "" if the row has a description."""
        if "description" in self.options:
            return ""
        method = self.options.get("method", {})
        changed = dotted({"name": method} if isinstance(method, str) else method)
        return ", ".join(f"{name}={_text(value)}" for name, value in changed.items())


@dataclass(frozen=True)
class Experiment:
    """The rows and seeds of a comparison.

    Args:
        rows: all settings.
        seeds: number of seeds of each row of the table, from 0.
        tuning_seeds: number of seeds of each setting before the best of its group is chosen.
        baseline: the group that the others are compared with, seed by seed; None: there is no baseline.
    """

    rows: tuple[Row, ...]
    seeds: int = 3
    tuning_seeds: int = 1
    baseline: str | None = None

    def __post_init__(self) -> None:
        for what, count in (("seeds", self.seeds), ("tuning_seeds", self.tuning_seeds)):
            if type(count) is not int:
                raise ConfigError(f"{what} must be a whole number, not {count!r}")
        if self.seeds > _MOST_SEEDS:
            raise ConfigError(f"seeds must be at most {_MOST_SEEDS:,}, not {self.seeds}")
        if not 1 <= self.tuning_seeds <= self.seeds:
            raise ConfigError(f"tuning_seeds must be from 1 to the {self.seeds} seeds, not {self.tuning_seeds}")
        for name in (self.baseline, *(row.start for row in self.rows)):
            if name is not None and name not in self.groups:
                raise ConfigError(f"no row {name!r} in the comparison; {nearest(name, self.groups)}")
        if len({row.name for row in self.rows}) < len(self.rows):
            twice = next(row.name for row in self.rows if [each.name for each in self.rows].count(row.name) > 1)
            raise ConfigError(f"the comparison has {twice} twice; leave one out")
        for row in self.rows:
            if row.start is not None and len(self.groups[row.start]) > 1:
                raise ConfigError(f"{row.group} starts from {row.start}, of which several settings are tried; name one")
        for row in self.rows:
            chain = [row.group]
            while (start := self.groups[chain[-1]][0].start) is not None:
                chain.append(start)
                if start in chain[:-1]:
                    raise ConfigError(f"rows cannot start from each other: {' from '.join(chain)}; name another start")

    @property
    def groups(self) -> dict[str, list[Row]]:
        """The settings of each row of the table."""
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups


def of_recipes(recipes: Sequence[str], seeds: int, baseline: str | None = None) -> Experiment:
    """An experiment of recipes without further options."""
    return Experiment(tuple(Row(recipe, recipe) for recipe in recipes), seeds, baseline=baseline)


def is_experiment(name: str) -> bool:
    """Whether it is an experiment file and not a recipe."""
    path = user_path(name)
    return path.is_file() and path.suffix in (".yaml", ".yml") and bool(_OWN & _mapping(path).keys())


def read_experiment(path: Path, seeds: int | None = None) -> Experiment:
    """An experiment from a file.

    all: {data: {views: 4}}              options of every row, as in a recipe
    rows:
      kd:
        recipe: cifar100-16px/kd-t2      every other key is an option, as in a recipe
        method: {kd_weight: 0.9}
        grid: {method.temperature: [1.0, 2.0], train: [{lr: 0.1}, {lr: 0.2, weight_decay: 0.0}]}
      kd-more: {recipe: cifar100-16px/kd-t2, start: kd-once}

    Args:
        path: the file. Beside `rows` and `all` it may have `description`, `seeds`, `tuning_seeds` and `baseline`.
        seeds: number of seeds that replaces the file's.

    Raises:
        ConfigError: the file is not a valid experiment.
    """
    return experiment_of(_mapping(path), path.stem, f"the experiment {path}", seeds)


def experiment_of(
    content: Mapping[str, Any], name: str, where: str = "the experiment", seeds: int | None = None
) -> Experiment:
    """An experiment from a mapping, as a file of one holds it (`read_experiment`).

    Args:
        content: rows by name, and what else the file may say.
        name: of the folder that the rows' run directories go to.
        where: what messages call it.
        seeds: in the place of those of the content.

    Raises:
        ConfigError: it is no such mapping.
    """
    for key in content.keys() - _KEYS:
        raise ConfigError(f"unknown key {key!r} in {where}; {nearest(str(key), _KEYS)}")
    common, rows = content.get("all", {}), content.get("rows")
    if not isinstance(common, dict) or not isinstance(rows, dict) or not rows:
        raise ConfigError(f"{where} must have rows by name, and under 'all' options if any")
    settings = [row for group, about in rows.items() for row in _settings(name, where, str(group), about, common)]
    count = seeds or content.get("seeds", 3)
    tuning = content.get("tuning_seeds", 1)
    if seeds is not None and isinstance(tuning, int):
        tuning = min(tuning, seeds)
    baseline = content.get("baseline")
    return Experiment(tuple(settings), count, tuning, None if baseline is None else str(baseline))


def _settings(name: str, where: str, group: str, about: Any, common: dict[str, Any]) -> Iterator[Row]:
    """All settings of one row of the file."""
    if not isinstance(about, dict) or not isinstance(about.get("recipe"), str):
        raise ConfigError(f"row {group!r} of {where} must be a mapping with a recipe, not {about!r}")
    is_name = group != "" and group.isprintable() and Path(group).name == group and group != ".."
    if not is_name or "|" in group or group.startswith("-"):
        raise ConfigError(
            f"row {group!r} of {where} must be the name of a folder, without '|' and without '-' in front; rename it"
        )
    grid = about.get("grid", {})
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise ConfigError(f"grid of row {group!r} of {where} must give a list of values by dotted option, not {grid!r}")
    own = {key: value for key, value in about.items() if key not in _OF_ROW}
    if (settings := math.prod(map(len, grid.values()))) > _MOST_SETTINGS:
        raise ConfigError(
            f"the grid of {group!r} of {where} has {settings:,} settings; give at most {_MOST_SETTINGS:,}"
        )
    options = _given(common) | _given(own)
    for key in _OF_RUNS & (options.keys() | grid.keys()):
        raise ConfigError(f"row {group!r} of {where} gives {key}, which a comparison sets for each run; leave it out")
    if "start" in about and "student.weights" in options.keys() | grid.keys():
        raise ConfigError(f"row {group!r} of {where} has both start and student.weights; leave one out")
    for values in itertools.product(*grid.values()):
        tried = _given(dict(zip(grid, values, strict=True)))
        setting = ",".join(f"{key.split('.')[-1]}={_text(value)}" for key, value in tried.items())
        folder = "/".join(filter(None, (name, group, setting.replace("/", "_"))))
        start = about.get("start")
        yield Row(group, about["recipe"], nested(options | tried), folder, None if start is None else str(start))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options by dotted name, without parts that give none."""
    return {name: value for name, value in dotted(options).items() if value != {}}


def _text(value: Any) -> str:
    """A value as a reader knows it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)  # a date has no JSON of its own


def _mapping(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    return content if isinstance(content, dict) else {}
