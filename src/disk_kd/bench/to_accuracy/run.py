"""Runs the measurement: contestants take turns of one epoch each until all are finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from disk_kd.arguments import read_arguments
from disk_kd.bench.plots import svg
from disk_kd.bench.to_accuracy.contestants import CONTESTANTS, DEFAULT, configs, shown_options
from disk_kd.bench.to_accuracy.curves import Curve
from disk_kd.bench.to_accuracy.process import ContestantProcess, Turns
from disk_kd.bench.to_accuracy.report import Outcome, csv_rows, csv_text, figure, markdown, tables
from disk_kd.build import check_weights
from disk_kd.config import RunConfig
from disk_kd.devices import pick_device
from disk_kd.errors import ConfigError, RunError
from disk_kd.files import read_yaml, replacing, write_text
from disk_kd.summary import environment

RECIPE = "cifar100/pretrained-resnet10_s"
STATE = "to-accuracy"
"""Part of the folder of runs."""

Start = Callable[[str, RunConfig, list[str], int | None], Turns]
"""Of name, run, imports and workers."""


@dataclass(frozen=True)
class Race:
    """The settings of a measurement.

    Args:
        options: [RECIPE] and options of `disk-kd distill` as --OPTION=VALUE, the same for all contestants. Without a
            recipe `RECIPE` is used.
        contestants: keys of `CONTESTANTS`.
        own: (name, OPTION=VALUE): options of a single contestant.
        targets: validation top-1 accuracies in percent. The table shows when each contestant reaches them.
        workers: number of worker processes of the other tools' loaders; None: one for each core.
        runs: folder whose subfolder `to-accuracy` holds the state of a stopped measurement.
        output: folder for table, curves and figure; None: print only.

    Raises:
        ConfigError: a target is not a percentage.
    """

    options: tuple[str, ...] = ()
    contestants: tuple[str, ...] = DEFAULT
    own: tuple[tuple[str, str], ...] = ()
    targets: tuple[float, ...] = ()
    workers: int | None = None
    runs: Path = Path("runs")
    output: Path | None = None

    def __post_init__(self) -> None:
        for target in self.targets:
            if not 0 < target <= 100:
                raise ConfigError(f"a target is a top-1 above 0 and at most 100 percent, not {target}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers must be at least 0, not {self.workers}")

    @property
    def arguments(self) -> list[str]:
        """A recipe and options. `RECIPE` itself trains on all images and has no validation split."""
        named = self.options and not self.options[0].startswith("-")
        return [*([] if named else [RECIPE, "--data.validation=0.1"]), *self.options]


def to_accuracy(race: Race, console: Console, start: Start = ContestantProcess) -> list[Curve]:
    """Train every contestant, print the tables, and write them to `race.output`.

    The contestants take turns, each in its own process with the same number of threads: first all prepare, then all
    train their first epoch, and so on. Slow moments of the machine then affect all. If it is stopped, the same call
    goes on after the last epoch of each.

    Args:
        race: settings of the measurement.
        console: console for progress and tables.
        start: makes the object that takes a contestant's turns; a process by default.

    Raises:
        DiskKDError: the input is not valid; or the folder holds another measurement or is in use.
    """
    folder = race.runs / STATE
    runs = configs(race.contestants, [*race.arguments, f"--runs={race.runs}"], race.own, folder.absolute())
    for config in runs.values():
        pick_device(config.train.device)
        check_weights(config)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            _check_same(folder / "begun.json", {name: config.to_yaml() for name, config in runs.items()})
            curves = _take_turns(race, runs, console, start)
    except Timeout:
        raise RunError(f"another measurement is at work in {folder}; wait for it, or give another --runs") from None
    outcome = Outcome(curves, race.targets, _facts(race, runs))
    for table in tables(outcome):
        console.print(table)
    if race.output is not None:
        write(outcome, race.output)
        console.print(f"Written: {race.output}", highlight=False, soft_wrap=True)
    return curves


def write(outcome: Outcome, folder: Path) -> None:
    """Curves, table and picture as files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"no folder for the results at {folder}: {error.strerror}; give another --output") from None
    facts = {**outcome.facts, "targets": outcome.targets, "curves": [asdict(curve) for curve in outcome.curves]}
    write_text(folder / "to-accuracy.json", json.dumps(facts, indent=2) + "\n")
    write_text(folder / "to-accuracy.csv", csv_text(csv_rows(outcome.curves)))
    write_text(folder / "to-accuracy.md", markdown(outcome))
    with replacing(folder / "to-accuracy.svg") as temporary:
        temporary.write_bytes(svg(figure(outcome)))


def _take_turns(race: Race, runs: dict[str, RunConfig], console: Console, start: Start) -> list[Curve]:
    """Run rounds in which each contestant does one part."""
    imports = list(read_arguments(race.arguments).imports)
    processes = [start(name, config, imports, race.workers) for name, config in runs.items()]
    curves: dict[str, Curve] = {}
    clean = False
    try:
        while not curves or not all(curve.done for curve in curves.values()):
            for process in processes:
                before = curves.get(process.name)
                if before is None or not before.done:
                    curves[process.name] = process.turn()
                    console.print(_line(curves[process.name]), highlight=False, markup=False, soft_wrap=True)
        clean = True
    finally:
        for process in processes:
            process.close(kill=not clean)
    return list(curves.values())


def _line(curve: Curve) -> str:
    """The progress line after a turn."""
    if not curve.points:
        return f"{curve.title}: prepared in {curve.prepare_s:.1f} s"
    last = curve.points[-1]
    return f"{curve.title}: epoch {last.epoch} of {curve.epochs}, {last.top1:.2f} % after {last.seconds:.1f} s"


def _check_same(path: Path, configurations: dict[str, str]) -> None:
    """Raise an error if the folder holds another measurement.

    Raises:
        ConfigError: it does.
    """
    if path.exists() and read_yaml(path) != configurations:
        raise ConfigError(
            f"{path.parent} holds another measurement, of other contestants or options; delete the folder, or give"
            " another --runs"
        )
    write_text(path, json.dumps(configurations, indent=2) + "\n")


def _facts(race: Race, runs: dict[str, RunConfig]) -> dict[str, Any]:
    """Hardware, versions, and the settings of each training."""
    first = next(iter(runs.values()))
    taught = next((config for config in runs.values() if config.teacher is not None), None)
    facts = environment(pick_device(first.train.device))
    if any(CONTESTANTS[name].kind == "torchdistill" for name in runs):
        facts["versions"] |= {"torchdistill": version("torchdistill")}
    return {
        **facts,
        "student": first.student.name,
        "teacher": None if taught is None or taught.teacher is None else taught.teacher.name,
        "data": first.data.name,
        "recipe": race.arguments[0],
        "contestants": {name: dict(shown_options(config)) for name, config in runs.items()},
    }
