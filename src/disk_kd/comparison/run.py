"""Run the cells of a comparison, choose among settings on validation, and write its table."""

from __future__ import annotations

import os
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console

from disk_kd import ranks
from disk_kd.build import load_data
from disk_kd.comparison.conditions import conditions_text, resolved_conditions
from disk_kd.comparison.experiment import Experiment, Row
from disk_kd.comparison.gain import differences, interval
from disk_kd.comparison.placement import gpu_of, placed
from disk_kd.comparison.plan import Cell, Plan, waves
from disk_kd.comparison.table import csv_text, latex, markdown, table
from disk_kd.config import RunConfig
from disk_kd.data import DATASETS, Dataset
from disk_kd.data.settings import DataSettings
from disk_kd.devices import pick_device
from disk_kd.errors import ConfigError, DataError, DiskKDError, RunError, nearest
from disk_kd.files import write_text
from disk_kd.memory import keep_memory
from disk_kd.plugins import import_modules
from disk_kd.run import execute
from disk_kd.run_folder import LOCK, BusyError
from disk_kd.summary import SUMMARY
from disk_kd.tasks import Quantity
from disk_kd.training import Display, JsonConsole, check_logger

Outcomes = dict[Cell, dict[str, Any] | str]
"""The summary of each run, or why there is none."""
Measure = Callable[[Any, str], Any]
"""Reads a number of a run's summary, on a split; None where there is none."""
Reporter = Callable[[Mapping[str, Sequence[Path]], str | None, Path, str], None]
"""Writes a report of the finished runs of each row, beside a baseline if there is one, to a file; the text tells what
the rows differ in."""


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        rows: what the table says of each setting.
        written: the tables, and the report if there is one.
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
    """Run, or reuse, every row with every seed, and whatever their weights come from.

    A finished run is not run again, an unfinished one goes on. Failed runs are marked in the table. Where a row has
    several settings, each runs with `tuning_seeds` seeds, and the best on validation with all.

    Args:
        experiment: rows and seeds.
        runs: folder of the run directories.
        name: of the tables written there, NAME.md, NAME.csv and NAME.tex, and of the report, NAME.html.
        options: further options for every run of a row, as a recipe holds them; data, train and import also for the
            runs that they take weights from.
        jobs: runs at a time; the cores are shared out among them, and they take the visible GPUs in turn.
        console: where progress and the table go; events on a `JsonConsole`.
        report: writes the report; None: there is none.

    Returns:
        What the table says, and the files.

    Raises:
        ConfigError: bad input, before anything runs.
        DataError: the data is not there, before anything runs.
        RunError: not one run of a row succeeded.
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
    """The runs of each row, seed by seed, once nothing speaks against them; nothing runs.

    Args:
        experiment, runs, options: as of `compare`.

    Raises:
        ConfigError: bad input.
        DataError: the data is not there.
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
    """Refuse a device or data that are not there; a finished run needs neither."""
    for config in configs:
        if (config.output / SUMMARY).is_file():
            continue
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


def _compared_quantities(configs: Iterable[RunConfig]) -> list[Quantity]:
    """What the methods of a comparison log and have columns for; of two of one name the first, with both units.

    It has a limit where one of the two has.
    """
    found: dict[str, Quantity] = {}
    for quantity in (quantity for config in configs for quantity in config.quantities if quantity.column):
        before = found.setdefault(quantity.name, quantity)
        found[quantity.name] = before = replace(before, limit=before.limit or quantity.limit)
        if quantity.unit not in before.unit.split(" or "):
            found[quantity.name] = replace(before, unit=f"{before.unit} or {quantity.unit}")
    return list(found.values())


def _write(rows: list[dict[str, Any]], differing: str, path: Path, quantities: Sequence[Quantity]) -> list[Path]:
    """The tables on disk."""
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
    """The table on the terminal, and what the rows differ in."""
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
    """The run directories of those that succeeded."""
    return [cell.config.output for cell in cells if isinstance(outcomes.get(cell), dict)]


def _reported(
    report: Reporter,
    finished: dict[str, list[Path]],
    baseline: str | None,
    differing: str,
    file: Path,
    console: Console,
) -> list[Path]:
    """The report, if it could be made: the runs and their table are worth as much without it."""
    try:
        report({row: folders for row, folders in finished.items() if folders}, baseline, file, differing)
    except (DiskKDError, OSError) as error:
        _say(console, f"No report: {error}")
        return []
    return [file]


def _cells(experiment: Experiment, row: Row, plan: Plan) -> list[Cell]:
    """The runs of a row, one a seed."""
    seeds = range(experiment.seeds)
    starts: Sequence[Cell | None] = [None] * experiment.seeds
    if row.start is not None:
        starts = _cells(experiment, experiment.groups[row.start][0], plan)
    return [plan.cell(row.recipe, seed, row.options, row.folder, starts[seed]) for seed in seeds]


def _best(group: list[Row], cells: dict[Row, list[Cell]], outcomes: Outcomes) -> Row:
    """The setting with the best mean validation top-1 over the seeds that it was tried with."""

    def validated(row: Row) -> float:
        found = [outcomes[cell] for cell in cells[row] if cell in outcomes]
        values = [outcome["validation"]["top1"] for outcome in found if not isinstance(outcome, str)]
        return statistics.fmean(values) if len(values) == len(found) else -1.0

    return group[0] if len(group) == 1 else max(group, key=validated)


class _Pool:
    """Worker processes, and what came of the runs they did."""

    def __init__(self, jobs: int, console: Console) -> None:
        self.jobs, self.console = jobs, console
        self.outcomes: Outcomes = {}
        self._pool = self._workers()

    def _workers(self) -> ProcessPoolExecutor:
        context = get_context("spawn")
        begun = context.Value("i", 0)
        return ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_begin, initargs=(self.jobs, begun))

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, error: type[BaseException] | None, *about: object) -> None:
        if error is not None:
            # Its own alone, not every child of the caller's; a run that trains saves itself first.
            for worker in list((self._pool._processes or {}).values()):
                worker.terminate()
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
                    future = self._pool.submit(_run_cell, waiting[0].config)
                except BrokenProcessPool:
                    broken = True
                else:
                    running[future] = waiting.popleft()
            ended = set() if broken else wait(running, return_when=FIRST_COMPLETED).done
            if broken or any(isinstance(future.exception(), BrokenProcessPool) for future in ended):
                self._pool.shutdown()
                self._pool, ended = self._workers(), set(running)
            for future in ended:
                cell = running.pop(future)
                if jobs > 1 and isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(cell)
                else:
                    yield cell, _outcome(future)
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


_gpu: int | None = None
"""This worker's."""


def _begin(jobs: int, begun: Any) -> None:
    """A worker's share of the cores, its GPU if there are any, and its end with the comparison.

    Args:
        jobs: workers in all.
        begun: how many began before, a number that all share.
    """
    global _gpu
    with begun.get_lock():
        worker, begun.value = begun.value, begun.value + 1
    _gpu = gpu_of(worker, torch.cuda.device_count())
    Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
    torch.set_num_threads(max(1, ranks.cores() // jobs))


def _end_with_parent() -> None:
    """Without it the worker of a killed comparison would train on, then wait for ever. Its run can be resumed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_cell(config: RunConfig) -> dict[str, Any] | str:
    """The run's summary, or why there is none. Where another comparison does the same run, it waits for it."""
    try:
        import_modules(config.imports)
        config = placed(config, _gpu)
        while True:
            try:
                return execute(config, Console(quiet=True), load=_load_once)
            except BusyError:
                with FileLock(config.output / LOCK):
                    pass
    except (DiskKDError, OSError) as error:
        return str(error)


@lru_cache(maxsize=1)
def _load_once(data: DataSettings) -> Dataset:
    """The dataset; a worker's runs mostly share one, which takes seconds to decode."""
    return load_data(data)


def _outcome(future: Future[dict[str, Any] | str]) -> dict[str, Any] | str:
    """What `_run_cell` gave, or the first line of what it or its process died of."""
    try:
        return future.result()
    except BrokenProcessPool:
        return "its process ended abruptly; out of memory? lower --jobs or train.batch_size"
    except Exception as error:  # other runs go on, whatever one of them died of
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


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
