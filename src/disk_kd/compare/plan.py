"""The runs of a comparison, and what must run before what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from disk_kd.config import RunConfig, parse_run, recipe_of
from disk_kd.errors import ConfigError


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Args:
        recipe: a name or a file.
        seed: of the run.
        options: of the whole comparison; those that begin with --data and --train also go to the runs that this one
            takes weights from.
        own: options of this run alone.
        folder: of its run directory, in the folder of all runs; None: as the recipe has it.
        start: the run whose student this one starts from; None: as the recipe has it.
    """

    recipe: str
    seed: int
    options: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    folder: str | None = None
    start: Cell | None = None


@lru_cache(maxsize=4096)
def cell_config(cell: Cell, runs: Path) -> RunConfig:
    """The configuration of one cell, which is read once: `cell_config.cache_clear()` forgets it."""
    if any(token.split("=")[0] == "--train.seed" for token in (*cell.own, *cell.options)):
        raise ConfigError("a comparison gives each run its train.seed; say how many with --seeds, and leave it out")
    own = [f"--train.seed={cell.seed}", f"--runs={runs}", "--resume", "--quiet"]
    if cell.folder is not None:
        own.append(f"--output={runs / cell.folder / f'seed{cell.seed}'}")
    if cell.start is not None:
        own.append(f"--student.weights={cell_config(cell.start, runs).output}")
    return replace(parse_run("distill", [cell.recipe, *cell.own, *cell.options, *own]), shares_views=True)


def plan_waves(cells: Sequence[Cell], runs: Path) -> list[list[Cell]]:
    """The cells and all that they start from, in waves: a run's weights come from an earlier wave.

    Raises:
        ConfigError: a recipe or option is wrong, two cells would share a run directory, or recipes take weights from
            each other.
    """
    depths: dict[Cell, int] = {}
    folders: dict[Path, Cell] = {}

    def depth(cell: Cell, above: tuple[Cell, ...] = ()) -> int:
        if cell in above:
            names = " from ".join(each.recipe for each in (*above[above.index(cell) :], cell))
            raise ConfigError(f"recipes cannot take weights from each other: {names}; name other weights")
        if cell not in depths:
            config = cell_config(cell, runs)
            other = folders.setdefault(config.output, cell)
            if other != cell:
                names = f"{other.recipe} (seed {other.seed}) and {cell.recipe} (seed {cell.seed})"
                raise ConfigError(
                    f"{names} would share the run directory {config.output}; rename a recipe, drop --output"
                )
            sources = _sources(config, cell)
            depths[cell] = max((1 + depth(source, (*above, cell)) for source in sources), default=0)
        return depths[cell]

    deepest = max((depth(cell) for cell in cells), default=-1)
    return [[cell for cell, at in depths.items() if at == level] for level in range(deepest + 1)]


def _sources(config: RunConfig, cell: Cell) -> list[Cell]:
    """The runs that this one takes weights from: a teacher of seed 0, a start of the same seed."""
    found = [] if cell.start is None else [cell.start]
    for model, seed in ((config.teacher, 0), (config.student, config.train.seed)):
        recipe = None if model is None else recipe_of(model.weights)
        if recipe is not None:
            found.append(Cell(recipe, seed, shared_options(cell.options)))
    return found


def shared_options(options: Sequence[str]) -> tuple[str, ...]:
    """The options that also hold for the runs that weights come from: --data..., --train... and --import."""
    shared, take = [], False
    for token in options:
        if token.startswith("--"):
            take = token.startswith(("--data", "--train", "--import"))
        if take:
            shared.append(token)
    return tuple(shared)
