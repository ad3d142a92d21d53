"""Run the cells of a comparison, choose among settings on validation, and write its table."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from disk_kd.build import find_weights
from disk_kd.comparison.conditions import conditions_text, resolved_conditions
from disk_kd.comparison.experiment import Experiment, Row
from disk_kd.comparison.gain import differences, interval
from disk_kd.comparison.plan import Cell, Plan, waves
from disk_kd.comparison.table import csv_text, latex, markdown, table
from disk_kd.comparison.worker import outcome_of, run_to_end, stop_workers, worker_processes
from disk_kd.config import RunConfig
from disk_kd.data import DATASETS
from disk_kd.devices import pick_device
from disk_kd.errors import ConfigError, DataError, DiskKDError, RunError, nearest
from disk_kd.files import write_text
from disk_kd.models import check_model_name
from disk_kd.summary import SUMMARY
from disk_kd.tasks import Quantity
from disk_kd.training import Display, JsonConsole, check_logger

Outcomes = dict[Cell, dict[str, Any] | str]
"""The summary of each run, or the reason why there is none."""
Measure = Callable[[Any, str], Any]
"""Reads a number of a run's summary, on a split; None if there is none."""
Reporter = Callable[[Mapping[str, Sequence[Path]], str | None, Path, str], None]
"""Writes a report of the finished runs of each row, beside a baseline if there is one, to a file; the text tells what
the rows differ in."""


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        rows: one mapping for each setting, with the columns of the table.
        written: files of the tables, and of the report if there is one.
    """

    rows: list[dict[str, Any]]
    written: list[Path]


def compare(
    experiment: Experiment,
    *,
    runs: Path,
    name: str = "compare",
    options: Mapping[str, Any] = {},
    jobs: int = 1,
    console: Console | None = None,
    report: Reporter | None = None,
) -> Comparison:
    """Run every row with every seed, and the runs whose weights they load.

    Finished runs are reused, unfinished runs are resumed. Failed runs are marked in the table. If a row has several
    settings, each runs with `tuning_seeds` seeds; the best on validation then runs with all seeds.

    Args:
        experiment: rows and seeds.
        runs: folder of the run directories.
        name: name of the files NAME.md, NAME.csv, NAME.tex and of the report NAME.html in that folder.
        options: further options of all runs, in the form of a recipe. Its data, train and import also apply to the
            runs whose weights they load.
        jobs: number of runs in parallel. They share the cores, and take the visible GPUs in turn.
        console: console for progress and the table. A `JsonConsole` gets events.
        report: function that writes the report; None: no report.

    Returns:
        The rows of the table, and the files.

    Raises:
        ConfigError: the input is not valid. This is checked before anything runs.
        DataError: the data is missing. This is checked before anything runs.
        RunError: no run succeeded.
    """
    console = console or Console()
    cells = check_comparison(experiment, runs=runs, options=options)
    groups = experiment.groups.values()
    runs.mkdir(parents=True, exist_ok=True)
    if isinstance(console, JsonConsole):
        console.event("start", runs=str(runs), rows=list(experiment.groups), seeds=experiment.seeds)
    tuning = {
        row: experiment.seeds if len(group) == 1 else experiment.tuning_seeds for group in groups for row in group
    }
    with _Pool(jobs, console) as pool:
        pool.run(cell for row, seeds in tuning.items() for cell in cells[row][:seeds])
        chosen = [_best(group, cells, pool.outcomes) for group in groups]
        pool.run(cell for row in chosen for cell in cells[row])
    rows = [_row(row, cells[row], pool.outcomes) for row in experiment.rows]
    for row, about in zip(experiment.rows, rows, strict=True):
        about |= {"chosen": row in chosen, "tried": len(experiment.groups[row.group])}
    quantities = _compared_quantities(cells[row][0].config for row in experiment.rows)
    _against_baseline(experiment, rows, {row: cells[row] for row in chosen}, pool.outcomes)
    if not any(row["n"] for row in rows):  # the tables of a comparison before this one stay
        raise RunError(f"no run of the comparison succeeded; {rows[0]['recipe']}: {rows[0]['failed']}")
    finished = {row.group: _finished(cells[row], pool.outcomes) for row in chosen}
    starts = {row.group: row.start for row in chosen if row.start is not None}
    differing = conditions_text(
        {row: list(map(resolved_conditions, folders)) for row, folders in finished.items()}, starts
    )
    written = _write(rows, differing, runs / name, quantities)
    _print_table(rows, differing, console, quantities)
    if report is not None:
        written += _reported(report, finished, experiment.baseline, differing, Path(f"{runs / name}.html"), console)
    if isinstance(console, JsonConsole):
        console.event("end", rows=rows, written=list(map(str, written)))
    else:
        tables, pages = written[:3], written[3:]
        _say(console, f"Tables: {', '.join(map(str, tables))}; a folder for each run beside them.")
        for page in pages:
            _say(console, f"Report: {page}")
    return Comparison(rows, written)


def check_comparison(experiment: Experiment, *, runs: Path, options: Mapping[str, Any] = {}) -> dict[Row, list[Cell]]:
    """The checked runs of each row, seed by seed. Nothing runs.

    Args:
        experiment, runs, options: as for `compare`.

    Raises:
        ConfigError, ModelError: the input is not valid.
        CheckpointError: a file of weights is missing.
        DataError: the data is missing.
    """
    if runs.exists() and not runs.is_dir():
        raise RunError(f"the folder of runs {runs} is a file; give another --runs")
    plan = Plan(runs, options)
    cells = {row: _cells(experiment, row, plan) for row in experiment.rows}
    _check(cell.config for wave in waves(chain(*cells.values())) for cell in wave)
    for row in (row for group in experiment.groups.values() if len(group) > 1 for row in group):
        if not cells[row][0].config.data.validation:
            raise ConfigError(f"{row.name} has no validation split to choose a setting by; set data.validation above 0")
    return cells


def _check(configs: Iterable[RunConfig]) -> None:
    """Refuse a missing device, model, file of weights or dataset. A finished run needs none of them."""
    configs = list(configs)
    made, named = {config.output.absolute() for config in configs}, set[str]()
    for config in configs:
        if (config.output / SUMMARY).is_file():
            continue
        _check_models(config, made, named)
        pick_device(config.train.device)
        check_logger(config.train.logger)
        name, root = config.data.name, config.data.root
        if name == "digits" or "/" in name:  # what has no root, and timm's readers, which look for themselves
            continue
        if name not in DATASETS:
            raise ConfigError(f"data.name {name!r} is not a dataset; {nearest(name.lower(), DATASETS)}")
        if root is None:
            raise DataError(f"{name} needs data.root, the folder of its data")
        if not root.is_dir() and not config.data.download:
            raise DataError(f"{name}: there is no folder data.root {root}")


def _check_models(config: RunConfig, made: Collection[Path], named: set[str]) -> None:
    """Check the names of a run's models, and that their weights exist or are `made` by the comparison.

    Args:
        config: configuration of the run.
        made: run directories of the comparison.
        named: names that were checked before; those of this run are added.
    """
    for part, one in (("student", config), *(("teacher", each) for each in config.each_teacher)):
        model = getattr(one, part)
        if model.name not in named:
            check_model_name(model.name)
            named.add(model.name)
        if model.weights is None or Path(model.weights).absolute() not in made:
            find_weights(one, part)


def _compared_quantities(configs: Iterable[RunConfig]) -> list[Quantity]:
    """The quantities with columns that the methods of a comparison log. Quantities with one name are merged.

    A merged quantity has all units, and a limit if one of them has a limit.
    """
    found: dict[str, Quantity] = {}
    for quantity in (quantity for config in configs for quantity in config.quantities if quantity.column):
        before = found.setdefault(quantity.name, quantity)
        found[quantity.name] = before = replace(before, limit=before.limit or quantity.limit)
        if quantity.unit not in before.unit.split(" or "):
            found[quantity.name] = replace(before, unit=f"{before.unit} or {quantity.unit}")
    return list(found.values())


def _write(rows: list[dict[str, Any]], differing: str, path: Path, quantities: Sequence[Quantity]) -> list[Path]:
    """Write the tables."""
    chosen = [row for row in rows if row["chosen"]]
    texts = {
        ".md": markdown(chosen, differing, quantities),
        ".csv": csv_text(rows),
        ".tex": latex(chosen, quantities),
    }
    for suffix, text in texts.items():
        write_text(Path(f"{path}{suffix}"), text)
    return [Path(f"{path}{suffix}") for suffix in texts]


def _print_table(rows: list[dict[str, Any]], differing: str, console: Console, quantities: Sequence[Quantity]) -> None:
    """Print the table, and the options in which the rows differ."""
    if isinstance(console, JsonConsole):
        return
    console.print(table([row for row in rows if row["chosen"]], quantities))
    _say(console, differing)
    for row in rows:
        if row["failed"]:
            _say(console, f"{row['recipe']}: failed: {row['failed']}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _finished(cells: Sequence[Cell], outcomes: Outcomes) -> list[Path]:
    """The run directories of the runs that succeeded."""
    return [cell.config.output for cell in cells if isinstance(outcomes.get(cell), dict)]


def _reported(
    report: Reporter,
    finished: dict[str, list[Path]],
    baseline: str | None,
    differing: str,
    file: Path,
    console: Console,
) -> list[Path]:
    """Write the report. If it cannot be written, print the reason; runs and tables are not affected."""
    try:
        report({row: folders for row, folders in finished.items() if folders}, baseline, file, differing)
    except (DiskKDError, OSError) as error:
        _say(console, f"No report: {error}")
        return []
    return [file]


def _cells(experiment: Experiment, row: Row, plan: Plan) -> list[Cell]:
    """The runs of a row, one for each seed."""
    seeds = range(experiment.seeds)
    starts: Sequence[Cell | None] = [None] * experiment.seeds
    if row.start is not None:
        starts = _cells(experiment, experiment.groups[row.start][0], plan)
    return [plan.cell(row.recipe, seed, row.options, row.folder, starts[seed]) for seed in seeds]


def _best(group: list[Row], cells: dict[Row, list[Cell]], outcomes: Outcomes) -> Row:
    """The setting with the best mean validation accuracy over the seeds that it was tried with.

    It is the accuracy that chooses the checkpoint, `train.select_by`.
    """

    def validated(row: Row) -> float:
        found = [outcomes[cell] for cell in cells[row] if cell in outcomes]
        values = [
            outcome["validation"][outcome.get("selection", {}).get("by", "top1")]
            for outcome in found
            if not isinstance(outcome, str)
        ]
        return statistics.fmean(values) if len(values) == len(found) else -1.0

    return group[0] if len(group) == 1 else max(group, key=validated)


class _Pool:
    """Worker processes, and what came of the runs they did."""

    def __init__(self, jobs: int, console: Console) -> None:
        self.jobs, self.console = jobs, console
        self.outcomes: Outcomes = {}
        self._pool = worker_processes(self.jobs)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, error: type[BaseException] | None, *about: object) -> None:
        if error is not None:
            stop_workers(self._pool)
        self._pool.shutdown(cancel_futures=True)

    def run(self, cells: Iterable[Cell]) -> None:
        """Run those cells that did not run yet, after all that they start from."""
        todo = [[cell for cell in wave if cell not in self.outcomes] for wave in waves(cells)]
        total, done = sum(map(len, todo)), 0
        with Display(total, title="runs", console=self.console) as display:
            for wave in todo:
                for cell, outcome in self._outcomes(wave, self.jobs):
                    done += 1
                    self.outcomes[cell] = outcome
                    self._print_outcome(cell, outcome, done, total)
                    display.step(done)

    def _outcomes(self, cells: Iterable[Cell], jobs: int) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
        """What came of each, as they end. One process that dies ends all: their runs go on, one by one."""
        waiting, suspects = deque(cells), list[Cell]()
        running: dict[Future[dict[str, Any] | str], Cell] = {}
        while waiting or running:
            # No more than run at once, so that nothing is begun after an interrupt.
            broken = False
            while waiting and len(running) < jobs and not broken:
                try:
                    future = self._pool.submit(run_to_end, waiting[0].config)
                except BrokenProcessPool:
                    broken = True
                else:
                    running[future] = waiting.popleft()
            ended = set() if broken else wait(running, return_when=FIRST_COMPLETED).done
            if broken or any(isinstance(future.exception(), BrokenProcessPool) for future in ended):
                self._pool.shutdown()
                self._pool, ended = worker_processes(self.jobs), set(running)
            for future in ended:
                cell = running.pop(future)
                if jobs > 1 and isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(cell)
                else:
                    yield cell, outcome_of(future)
        if suspects:
            yield from self._outcomes(suspects, 1)

    def _print_outcome(self, cell: Cell, outcome: dict[str, Any] | str, done: int, total: int) -> None:
        """What came of a run."""
        name = cell.folder or cell.recipe
        if isinstance(self.console, JsonConsole):
            came = {"failed": outcome} if isinstance(outcome, str) else {"summary": outcome}
            about = {"row": name, "seed": cell.seed, "run": str(cell.config.output)}
            self.console.event("run", **about, done=done, total=total, **came)
        else:
            _say(self.console, f"[{done}/{total}] {name} seed {cell.seed}: {_said(outcome)}")


def _said(outcome: dict[str, Any] | str) -> str:
    if isinstance(outcome, str):
        return f"failed: {outcome}"
    split = "test" if "test" in outcome else "validation"
    return f"{split} top-1 {outcome[split]['top1']:.2f}%, {outcome['train_s']:.0f} s of training"


def _row(row: Row, cells: Sequence[Cell], outcomes: Outcomes) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds that finished, and the conditions."""
    found = [outcomes[cell] for cell in cells if cell in outcomes]
    finished = [outcome for outcome in found if not isinstance(outcome, str)]
    failed = "; ".join(dict.fromkeys(outcome for outcome in found if isinstance(outcome, str)))
    about: dict[str, Any] = {"recipe": row.group, "setting": row.name, "n": len(finished), "failed": failed}
    if not finished:
        return about
    first = finished[0]
    about["split"] = split = "test" if "test" in first else "validation"
    for name, read in _measures(cells[0].config.quantities).items():
        values = [read(summary, split) for summary in finished]
        if None not in values:
            about[name] = statistics.fmean(values)
            about[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
    about |= {name: first[name] for name in _CONDITIONS}
    # A run made before an option was changed back, or by an earlier version, does not bring its number along.
    about["published"] = first["published"] if cells[0].config.published is not None else None
    return about | {"description": "; ".join(filter(None, (first["description"], row.changed)))}


def _against_baseline(
    experiment: Experiment, rows: list[dict[str, Any]], chosen: dict[Row, list[Cell]], outcomes: Outcomes
) -> None:
    """Add the mean difference to the baseline, paired by seed, and half the width of its 95% interval."""
    if experiment.baseline is None:
        return
    finished = {row.group: {cell.seed: outcomes[cell] for cell in cells} for row, cells in chosen.items()}
    finished = {row: {s: one for s, one in of.items() if not isinstance(one, str)} for row, of in finished.items()}
    for about in rows:
        if not about["chosen"] or not about["n"] or about["recipe"] == experiment.baseline:
            continue
        pair = finished[about["recipe"]], finished[experiment.baseline]
        if not _same_images(*pair, about["split"]):
            continue
        for name in ("top1", "nll"):
            ours, theirs = ({s: _METRICS[name](one, about["split"]) for s, one in of.items()} for of in pair)
            if paired := differences(ours, theirs):
                about[f"{name}_gain"], about[f"{name}_gain_95"] = interval(paired)


def _same_images(ours: Mapping[int, Any], theirs: Mapping[int, Any], split: str) -> bool:
    """Whether all these runs were measured on the same split; else their difference is no gain."""
    summaries = [*ours.values(), *theirs.values()]
    return len({(one["data"], one.get(split, {}).get("samples")) for one in summaries}) == 1


_CONDITIONS = (
    "description",
    "method",
    "student",
    "teacher",
    "student_epochs",
    "start_epochs",
    "weight_decay",
    "parameters",
    "published",
)


def _measures(quantities: Iterable[Quantity]) -> dict[str, Measure]:
    """Columns of the table and how they are read from a summary: metrics, the method's quantities, costs."""
    at_end = {quantity.name: partial(_at_end, quantity.name) for quantity in quantities if quantity.column}
    return {**_METRICS, **at_end, **_COSTS}


def _at_end(name: str, summary: dict[str, Any], split: str) -> float | None:
    return summary["end"].get(name)


_METRICS: dict[str, Measure] = {
    "top1": lambda summary, split: summary[split]["top1"],
    "top1_last": lambda summary, split: summary["last"][split]["top1"],
    "balanced": lambda summary, split: summary[split].get("balanced"),
    "macro_f1": lambda summary, split: summary[split].get("macro_f1"),
    "worst_top1": lambda summary, split: summary[split].get("worst_top1"),
    "top1_validation": lambda summary, split: summary.get("validation", {}).get("top1"),
    "nll": lambda summary, split: summary[split]["nll"],
    "ece": lambda summary, split: summary[split]["ece"],
    "temperature": lambda summary, split: summary[split].get("temperature"),
    "nll_scaled": lambda summary, split: summary[split].get("nll_scaled"),
    "ece_scaled": lambda summary, split: summary[split].get("ece_scaled"),
}
_COSTS: dict[str, Measure] = {
    "images_per_s": lambda summary, split: summary["images_per_s"],
    "train_s": lambda summary, split: summary["train_s"],
}
