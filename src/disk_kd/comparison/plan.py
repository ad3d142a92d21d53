"""The runs of a comparison, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disk_kd.config import RunConfig
from disk_kd.errors import ConfigError
from disk_kd.options import merged
from disk_kd.recipe import find_recipe, load_recipe, referred, teachers_in, with_members, without_teacher

_SHARED = ("data", "train", "import")
"""The parts of a comparison's options that also hold for the runs that weights come from."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a comparison.

    Attributes:
        recipe: name or file of the recipe.
        seed: seed of the run.
        config: configuration of the run.
        sources: the runs whose weights this run loads.
        folder: name of its folder in the folder of all runs; None: the recipe gives it.
    """

    recipe: str
    seed: int
    config: RunConfig
    sources: tuple[Cell, ...] = ()
    folder: str | None = None


class Plan:
    """Makes the cells of a comparison. A run whose weights several rows load is made once."""

    def __init__(self, runs: Path, options: Mapping[str, Any]) -> None:
        if "seed" in options.get("train", {}):
            raise ConfigError("a comparison gives each run its train.seed; say how many with --seeds, and leave it out")
        self.runs = runs
        self.options = options
        self._shared = {key: options[key] for key in _SHARED if key in options}
        self._cells: dict[Path, Cell] = {}

    def cell(
        self,
        recipe: str,
        seed: int,
        own: Mapping[str, Any] = {},
        folder: str | None = None,
        start: Cell | None = None,
    ) -> Cell:
        """The run of a row and a seed.

        Args:
            recipe: name or file of the recipe.
            seed: seed of the run.
            own: options of this run. Options of the whole comparison override them.
            folder: name of its folder in the folder of all runs; None: the recipe gives it.
            start: the run whose student this run starts from; None: the recipe gives it.

        Raises:
            ConfigError: a recipe or option is wrong, two cells would share a run directory, or recipes take weights
                from each other.
        """
        return self._cell(recipe, seed, merged(own, self.options), folder, start, ())

    def _cell(
        self,
        recipe: str,
        seed: int,
        options: Mapping[str, Any],
        folder: str | None,
        start: Cell | None,
        above: tuple[tuple[str, int], ...],
    ) -> Cell:
        if (recipe, seed) in above:
            chain = [each for each, _ in (*above[above.index((recipe, seed)) :], (recipe, seed))]
            raise ConfigError(
                f"recipes cannot take weights from each other: {' from '.join(chain)}; name other weights"
            )
        given: dict[str, Any] = {"train": {"seed": seed}}
        if folder is not None:
            given["output"] = str(self.runs / folder / f"seed{seed}")
        if start is not None:
            given["student"] = {"weights": str(start.config.output)}
        options = with_members(merged(options, given))
        path = find_recipe(recipe)
        config = RunConfig.of_recipe(path, options, runs=self.runs, resume=True, shares_views=True)
        sources: tuple[Cell, ...] = () if start is None else (start,)
        recipe_and_options = merged(without_teacher(load_recipe(path), options), options)
        named = [(teacher, 0) for teacher in teachers_in(recipe_and_options)] if config.teacher is not None else []
        for part, of_part in (*named, (recipe_and_options.get("student") or {}, seed)):
            weights = part.get("weights")
            source = referred(weights) if isinstance(weights, str) else None
            if source is not None:
                sources += (self._cell(source, of_part, self._shared, None, None, (*above, (recipe, seed))),)
        cell = self._cells.setdefault(config.output, Cell(recipe, seed, config, sources, folder))
        if cell.config != config:
            names = f"{cell.recipe} (seed {cell.seed}) and {recipe} (seed {seed})"
            raise ConfigError(f"{names} would share the run directory {config.output}; rename a recipe, drop --output")
        return cell


def waves(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells and the runs whose weights they load, in waves. Weights come from runs of earlier waves."""
    depths: dict[Cell, int] = {}
    for cell in cells:
        for each in _with_sources(cell):
            depths.setdefault(each, max((1 + depths[source] for source in each.sources), default=0))
    deepest = max(depths.values(), default=-1)
    return [[cell for cell, at in depths.items() if at == level] for level in range(deepest + 1)]


def _with_sources(cell: Cell) -> Iterator[Cell]:
    """The runs whose weights a cell loads, then the cell."""
    for source in cell.sources:
        yield from _with_sources(source)
    yield cell
