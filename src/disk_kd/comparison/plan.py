"""The runs of a comparison, and what must run before what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disk_kd.config import RunConfig
from disk_kd.errors import ConfigError
from disk_kd.options import merged
from disk_kd.recipe import find_recipe, load_recipe, referred

_SHARED = ("data", "train", "import")
"""The parts of a comparison's options that also hold for the runs that weights come from."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a comparison.

    Attributes:
        recipe: a name or a file.
        seed: of the run.
        config: of the run.
        sources: the runs that this one takes weights from.
        folder: of its run directories, in the folder of all runs; None: as the recipe has it.
    """

    recipe: str
    seed: int
    config: RunConfig
    sources: tuple[Cell, ...] = ()
    folder: str | None = None


class Plan:
    """Makes the cells of a comparison: each run once, however many rows take its weights."""

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
            recipe: a name or a file.
            seed: of the run.
            own: options of this run alone; those of the whole comparison lie over them.
            folder: of its run directory, in the folder of all runs; None: as the recipe has it.
            start: the run whose student this one starts from; None: as the recipe has it.

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
        options = merged(options, given)
        path = find_recipe(recipe)
        config = RunConfig.of_recipe(path, options, runs=self.runs, resume=True, shares_views=True)
        sources: tuple[Cell, ...] = () if start is None else (start,)
        for part, of_part in (("teacher", 0), ("student", seed)):
            weights = merged(load_recipe(path).get(part, {}), options.get(part, {})).get("weights")
            source = referred(weights) if isinstance(weights, str) and getattr(config, part) is not None else None
            if source is not None:
                sources += (self._cell(source, of_part, self._shared, None, None, (*above, (recipe, seed))),)
        cell = self._cells.setdefault(config.output, Cell(recipe, seed, config, sources, folder))
        if cell.config != config:
            names = f"{cell.recipe} (seed {cell.seed}) and {recipe} (seed {seed})"
            raise ConfigError(f"{names} would share the run directory {config.output}; rename a recipe, drop --output")
        return cell


def waves(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells and all that they take weights from, in waves: a run's weights come from an earlier wave."""
    depths: dict[Cell, int] = {}
    for cell in cells:
        for each in _with_sources(cell):
            depths.setdefault(each, max((1 + depths[source] for source in each.sources), default=0))
    deepest = max(depths.values(), default=-1)
    return [[cell for cell, at in depths.items() if at == level] for level in range(deepest + 1)]


def _with_sources(cell: Cell) -> Iterator[Cell]:
    """A cell after all that it takes weights from."""
    for source in cell.sources:
        yield from _with_sources(source)
    yield cell
