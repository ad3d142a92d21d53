"""Several recipes over several seeds, side by side: what each reached, and under which conditions."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from disk_kd.build import load_data
from disk_kd.compare_table import conditions_text, csv_text, markdown, table
from disk_kd.config import DataConfig, RunConfig, parse_run, recipe_of
from disk_kd.data import Dataset
from disk_kd.errors import ConfigError, DiskKDError, RunError
from disk_kd.files import write_text
from disk_kd.memory import keep_memory
from disk_kd.run import execute
from disk_kd.summary import SUMMARY


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    recipe: str
    seed: int
    options: tuple[str, ...] = ()


def compare(
    recipes: Sequence[str],
    *,
    seeds: int,
    runs: Path,
    options: Sequence[str] = (),
    jobs: int = 1,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Run, or reuse, every recipe with every seed, and whatever their weights come from.

    A finished run is not run again, an unfinished one goes on. A run that fails is a row of the table.

    Args:
        recipes: names or files of recipes.
        seeds: how many seeds, from 0.
        runs: folder of the run directories; `compare.md` and `compare.csv` are written there.
        options: further options for every run of `recipes`; those that begin with --data and --train also for the
            runs that they take weights from.
        jobs: runs at a time; the cores are shared out among them.
        console: where progress and the table go.

    Returns:
        A row of the table for each recipe.

    Raises:
        ConfigError: bad input, before anything runs.
        RunError: not one run of `recipes` succeeded.
    """
    console = console or Console()
    cells = {recipe: [Cell(recipe, seed, tuple(options)) for seed in range(seeds)] for recipe in recipes}
    waves = plan_waves([cell for group in cells.values() for cell in group], runs)
    runs.mkdir(parents=True, exist_ok=True)
    failures = _run_waves(waves, runs, jobs, console)
    rows = [_row(recipe, group, runs, failures) for recipe, group in cells.items()]
    differing = conditions_text({recipe: cell_config(group[0], runs) for recipe, group in cells.items()})
    write_text(runs / "compare.md", markdown(rows, differing))
    write_text(runs / "compare.csv", csv_text(rows))
    console.print(table(rows))
    console.print(differing, markup=False, highlight=False, soft_wrap=True)
    for row in rows:
        if row["failed"]:
            console.print(f"{row['recipe']}: failed: {row['failed']}", markup=False, soft_wrap=True)
    console.print(f"Written: {runs / 'compare.md'} and compare.csv; a folder for each run beside them.", soft_wrap=True)
    if not any(row["n"] for row in rows):
        raise RunError(f"no run of the comparison succeeded; {rows[0]['recipe']}: {rows[0]['failed']}")
    return rows


def _run_waves(waves: list[list[Cell]], runs: Path, jobs: int, console: Console) -> dict[Cell, str]:
    """Run all cells; returns why those failed that did."""
    total, done = sum(map(len, waves)), 0
    failures: dict[Cell, str] = {}
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_share_cores, initargs=(jobs,))
    try:
        for wave in waves:
            futures = {pool.submit(_run_cell, cell, runs): cell for cell in wave}
            for future in as_completed(futures):
                cell, outcome = futures[future], _outcome(future)
                done += 1
                if isinstance(outcome, str):
                    failures[cell] = outcome
                text = f"[{done}/{total}] {cell.recipe} seed {cell.seed}: {_said(outcome)}"
                console.print(text, highlight=False, markup=False, soft_wrap=True)
    finally:
        pool.shutdown(cancel_futures=True)
    return failures


def plan_waves(cells: Sequence[Cell], runs: Path) -> list[list[Cell]]:
    """The cells and all that they start from, in waves: a run's weights come from an earlier wave.

    Raises:
        ConfigError: a recipe or option is wrong, or two cells would share a run directory.
    """
    depths: dict[Cell, int] = {}
    folders: dict[Path, Cell] = {}

    def depth(cell: Cell) -> int:
        if cell not in depths:
            config = cell_config(cell, runs)
            other = folders.setdefault(config.output, cell)
            if other != cell:
                names = f"{other.recipe} (seed {other.seed}) and {cell.recipe} (seed {cell.seed})"
                raise ConfigError(
                    f"{names} would share the run directory {config.output}; rename a recipe, drop --output"
                )
            depths[cell] = 0
            depths[cell] = max((1 + depth(source) for source in _sources(config, cell)), default=0)
        return depths[cell]

    deepest = max(map(depth, cells), default=-1)
    return [[cell for cell, at in depths.items() if at == level] for level in range(deepest + 1)]


def cell_config(cell: Cell, runs: Path) -> RunConfig:
    """The configuration of one cell."""
    own = [f"--train.seed={cell.seed}", f"--runs={runs}", "--resume", "--quiet"]
    return parse_run("distill", [cell.recipe, *cell.options, *own])


def _sources(config: RunConfig, cell: Cell) -> list[Cell]:
    """The runs that this one takes weights from: a teacher of seed 0, a start of the same seed."""
    found = []
    for model, seed in ((config.teacher, 0), (config.student, config.train.seed)):
        recipe = None if model is None else recipe_of(model.weights)
        if recipe is not None:
            found.append(Cell(recipe, seed, shared_options(cell.options)))
    return found


def shared_options(options: Sequence[str]) -> tuple[str, ...]:
    """The options that also hold for the runs that weights come from: --data... and --train..., with their values."""
    shared, take = [], False
    for token in options:
        if token.startswith("--"):
            take = token.startswith(("--data", "--train"))
        if take:
            shared.append(token)
    return tuple(shared)


def _share_cores(jobs: int) -> None:
    keep_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // jobs))


def _run_cell(cell: Cell, runs: Path) -> dict[str, Any] | str:
    """The run's summary, or why there is none."""
    try:
        return execute(cell_config(cell, runs), Console(quiet=True), load=_load_once)
    except (DiskKDError, OSError) as error:
        return str(error)


@lru_cache(maxsize=1)
def _load_once(data: DataConfig) -> Dataset:
    """The dataset; a worker's runs mostly share one, which takes seconds to decode."""
    return load_data(data)


def _outcome(future: Future[dict[str, Any] | str]) -> dict[str, Any] | str:
    """What `_run_cell` gave, or the first line of what it or its process died of."""
    try:
        return future.result()
    except Exception as error:  # other runs go on, whatever one of them died of
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _said(outcome: dict[str, Any] | str) -> str:
    if isinstance(outcome, str):
        return f"failed: {outcome}"
    split = "test" if "test" in outcome else "validation"
    return f"{split} top-1 {outcome[split]['top1']:.2f}%, {outcome['train_s']:.0f} s of training"


def _row(recipe: str, cells: Sequence[Cell], runs: Path, failures: dict[Cell, str]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds that finished, and the conditions."""
    finished = [_summary(cell_config(cell, runs)) for cell in cells if cell not in failures]
    failed = "; ".join(dict.fromkeys(failures[cell] for cell in cells if cell in failures))
    if not finished:
        return {"recipe": recipe, "n": 0, "failed": failed}
    first = finished[0]
    split = "test" if "test" in first else "validation"
    row: dict[str, Any] = {"recipe": recipe, "n": len(finished), "failed": failed, "split": split}
    for name, read in _MEASURES.items():
        values = [read(summary, split) for summary in finished]
        if None not in values:
            row[name] = statistics.fmean(values)
            row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    row |= {name: first[name] for name in _CONDITIONS}
    return row


_CONDITIONS = (
    "description",
    "method",
    "student",
    "teacher",
    "student_passes",
    "start_passes",
    "weight_decay",
    "parameters",
    "published",
)

_MEASURES = {
    "top1": lambda summary, split: summary[split]["top1"],
    "top1_last": lambda summary, split: summary["last"][split]["top1"],
    "nll": lambda summary, split: summary[split]["nll"],
    "ece": lambda summary, split: summary[split]["ece"],
    "budget": lambda summary, split: summary["end"].get("budget"),
    "budget_used": lambda summary, split: summary["end"].get("budget_used"),
    "images_per_s": lambda summary, split: summary["images_per_s"],
    "train_s": lambda summary, split: summary["train_s"],
}


def _summary(config: RunConfig) -> dict[str, Any]:
    return json.loads((config.output / SUMMARY).read_text())
