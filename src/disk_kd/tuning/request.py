"""What a search is asked to do, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disk_kd.comparison import check_comparison, waves
from disk_kd.comparison.experiment import Experiment, Row
from disk_kd.config import ENVIRONMENT, RunConfig
from disk_kd.errors import ConfigError, nearest
from disk_kd.files import read_yaml
from disk_kd.options import merged, nested, plain
from disk_kd.recipe import TUNE, find_recipe, load_recipe, recipe_name
from disk_kd.tuning.candidate import Candidate, Source, candidates_of
from disk_kd.tuning.search import optuna
from disk_kd.tuning.space import read_space

_KEYS = {"methods", "space"}
_OF_SEARCH = ("method", "hint", "output", "published", "description")


@dataclass(frozen=True)
class TuneRequest:
    """A checked search.

    Attributes:
        recipe: its name or file.
        candidates: the methods that compete, the baseline first.
        folder: of the search.
        hours: time for all of it; None: `full_runs` counts.
        full_runs: length of the search in full runs, summed over the candidates; None: `hours` counts.
        seeds: number of seeds of the confirmation.
        jobs: runs at a time.
        teachers: runs that teachers and starting points come from, in order.
    """

    recipe: str
    candidates: tuple[Candidate, ...]
    folder: Path
    hours: float | None
    full_runs: int | None
    seeds: int
    jobs: int
    teachers: tuple[tuple[RunConfig, ...], ...]

    @property
    def baseline(self) -> RunConfig:
        """A full run of the baseline with the recipe's settings."""
        return self.candidates[0].config({})

    @property
    def about(self) -> dict[str, Any]:
        """What the results of the search depend on; a search goes on only if it is the same."""
        identity = self.candidates[1].config({}).identity
        options = {name: value for name, value in identity.items() if name != "train.seed"}
        return {
            "recipe": self.recipe,
            "options": plain(options),
            "methods": [one.name for one in self.candidates],
            "space": {one.name: plain([vars(each) for each in one.space]) for one in self.candidates},
            "hours": self.hours,
            "runs": self.full_runs,
            "seeds": self.seeds,
            "optuna": optuna().__version__,
        }


def read_request(
    recipe: str,
    options: Mapping[str, Any] = {},
    *,
    hours: float | None = None,
    full_runs: int | None = None,
    methods: Sequence[str] | None = None,
    space: Path | Mapping[str, Any] | None = None,
    seeds: int = 3,
    jobs: int = 1,
    runs: Path = Path("runs"),
    output: Path | None = None,
) -> TuneRequest:
    """The checked search of these settings. Nothing runs, and nothing is written.

    Args:
        recipe: name or file. Its key `tune` may hold `methods` and `space`.
        options: options over the recipe, as a recipe holds them.
        hours, full_runs: length of the search; give one of them.
        methods: METHOD or METHOD+HINT; None: those of the space or the recipe, else ce, kd, dist and the recipe's.
        space: file or mapping with `methods`, `space` or both; it is used in the place of the recipe's.
        seeds, jobs: as the attributes.
        runs: folder of run directories, with the teacher store.
        output: folder of the search; None: RUNS/tune/RECIPE.

    Raises:
        ConfigError: bad input, or Optuna is not installed.
        DataError: the data is not there.
    """
    optuna()
    _check_length(hours, full_runs)
    path = find_recipe(recipe)
    for part in _OF_SEARCH:
        if part in options:
            raise ConfigError(f"--{part} is chosen by the search; give --methods, or a recipe with these settings")
    if "seed" in options.get("train", {}):
        raise ConfigError("the search gives each run its train.seed; say how many confirm it with --seeds")
    where = f"the recipe {recipe}" if space is None else str(space) if isinstance(space, Path) else "the space"
    given = _section(path, space, where)
    dimensions = read_space(given["space"], where) if "space" in given else None
    source = Source(path, options, runs)
    candidates = candidates_of(source, methods or given.get("methods"), dimensions, where)
    request = TuneRequest(
        recipe=recipe,
        candidates=candidates,
        folder=output or runs / "tune" / recipe_name(path),
        hours=hours,
        full_runs=full_runs,
        seeds=seeds,
        jobs=jobs,
        teachers=_teachers(recipe, candidates, runs, options),
    )
    if not request.baseline.data.validation:
        raise ConfigError("the search needs a validation split to choose by; set data.validation above 0")
    if full_runs is not None and full_runs < len(candidates):
        raise ConfigError(
            f"--runs {full_runs} is too small: each of {', '.join(one.name for one in candidates)} needs a full run;"
            f" give at least {len(candidates)}, or fewer --methods"
        )
    return request


def _check_length(hours: float | None, full_runs: int | None) -> None:
    if (hours is None) == (full_runs is None):
        raise ConfigError("give the length of the search with --hours H or with --runs N, one of the two")
    if hours is not None and not 0 < hours < math.inf:
        raise ConfigError(f"--hours must be above 0 and finite, not {hours}")


def _section(path: Path, space: Path | Mapping[str, Any] | None, where: str) -> Mapping[str, Any]:
    """Methods and space from the user's file or mapping, else from the recipe."""
    found = load_recipe(path).get(TUNE, {}) if space is None else read_yaml(space) if isinstance(space, Path) else space
    if not isinstance(found, Mapping) or (not found and space is not None):
        raise ConfigError(f"{where} must hold 'space', a mapping of options, or 'methods', a list, or both")
    for key in found:
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r} in {where}; {nearest(str(key), _KEYS)}")
    names = found.get("methods", ["-"])
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"methods in {where} must be a list of names such as [kd, dist], not {names!r}")
    return found


def _teachers(
    recipe: str, candidates: Sequence[Candidate], runs: Path, options: Mapping[str, Any]
) -> tuple[tuple[RunConfig, ...], ...]:
    """The runs that weights come from, in waves. Checks device and data too.

    Of the options they get those of the data, and of training those that do not change a result, such as the device: a
    teacher trains as its own recipe says.
    """
    train = {name: value for name, value in options.get("train", {}).items() if f"train.{name}" in ENVIRONMENT}
    shared = {name: options[name] for name in ("data", "import") if name in options} | {"train": train}
    rows = []
    for candidate in candidates:
        method, _, hint = candidate.name.partition("+")
        own = {"method": {"name": method}, "hint": {"name": hint} if hint else None}
        teachers = [one for one in candidate.space if one.option.startswith("teacher")]
        for place, value in enumerate([value for one in teachers for value in one.extremes] or [None]):
            taught: dict[str, Any] = {} if value is None else {teachers[0].option: value}
            name = f"{candidate.name} {place}"
            rows.append(Row(name, recipe, merged({**options, **own}, nested(taught)), folder=f"tune/{name}"))
    cells = check_comparison(Experiment(tuple(rows), seeds=1), runs=runs, options=shared)
    sources = [source for of_row in cells.values() for cell in of_row for source in cell.sources]
    return tuple(tuple(cell.config for cell in wave) for wave in waves(sources))
