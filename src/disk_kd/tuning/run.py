"""A whole search: teachers, settings of every method with the same effort, confirmation over seeds, what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from disk_kd.advising.timing import epoch_seconds
from disk_kd.comparison.worker import worker_processes
from disk_kd.errors import ConfigError, RunError
from disk_kd.summary import SUMMARY
from disk_kd.training import JsonConsole
from disk_kd.tuning.importance import importances
from disk_kd.tuning.journal import Journal, Result, check_same_search
from disk_kd.tuning.outcome import Confirmed, Gain, gain_of, write_outcome
from disk_kd.tuning.picture import picture
from disk_kd.tuning.request import TuneRequest
from disk_kd.tuning.search import Job, Search, Tried, lengths
from disk_kd.tuning.space import setting_text
from disk_kd.tuning.workers import Lines, Workers

_OF_TIME = 0.95
"""The share of the remaining time that is planned."""
_BESIDE_TRAINING = 1.1
"""Time of a run over its time of training: validation, checkpoints, the start."""


@dataclass(frozen=True)
class Tuned:
    """What came of a search.

    Attributes:
        gain: of the best method with a teacher over the labels alone.
        searches: the settings of each candidate and their results, the baseline first.
        written: recipe, tables and picture.
    """

    gain: Gain
    searches: tuple[Search, ...]
    written: tuple[Path, ...]


def tune(
    request: TuneRequest, console: Console | None = None, make: Callable[[int], Executor] = worker_processes
) -> Tuned:
    """Search, confirm and write the outcome. The same request goes on with a search that was stopped or killed.

    Args:
        request: from `read_request`.
        console: where progress goes; events on a `JsonConsole`.
        make: makes the worker processes.

    Raises:
        ConfigError: the time is too short for two runs.
        RunError: another search is in the folder or at work there, or all runs of a method failed.
    """
    console = console or Console(quiet=True)
    _check_time(request)
    check_same_search(request.folder, request.about)
    request.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(request.folder / "lock", timeout=0), Workers(request.jobs, make) as workers:
            return _Tuning(request, Journal(request.folder, request.about), workers, console).run()
    except Timeout:
        raise RunError(f"another process works on the search in {request.folder}; wait for it") from None


def _check_time(request: TuneRequest) -> None:
    """Refuse hours that are too few for two runs of the baseline, the least that is compared. It trains a few steps."""
    if request.hours is None:
        return
    epochs = request.baseline.train.epochs
    needed_s = 2 * epochs * epoch_seconds(request.baseline)
    if 3600 * request.hours < needed_s:
        raise ConfigError(
            f"--hours {request.hours:g} is too short: two runs of {epochs} epochs take about {needed_s / 3600:.2g}"
            " hours; give more hours, or fewer --train.epochs"
        )


class _Tuning:
    """A search that is at work."""

    def __init__(self, request: TuneRequest, journal: Journal, workers: Workers, console: Console) -> None:
        self.request, self.journal, self.workers, self.console = request, journal, workers, console
        self.epochs = request.baseline.train.epochs
        self.budget = 0
        self.width = journal.decision("width") or journal.decide(
            "width", max(1, request.jobs // len(request.candidates))
        )
        self.seeds = request.seeds
        self.searches = tuple(
            Search(one, self.epochs, width=self.width, may_begin=self._rule(one.is_baseline))
            for one in request.candidates
        )
        self._begun: dict[str, float] = {}

    def _rule(self, is_baseline: bool) -> Callable[[int, int], bool]:
        """When a candidate may begin a setting. The baseline ends at or above the budget, the others at or below it.

        So the labels alone never get less effort than a method that is compared with them.
        """
        if is_baseline:
            return lambda spent, cost: spent < self.budget
        return lambda spent, cost: spent + cost <= self.budget

    def run(self) -> Tuned:
        """All of it."""
        self._train_teachers()
        self._say(
            f"Search in {self.request.folder}: {', '.join(one.candidate.name for one in self.searches)};"
            f" runs of {' or '.join(map(str, lengths(self.epochs)))} epochs, {self.request.jobs} at a time"
        )
        if self.request.full_runs is not None:
            self.budget = self.request.full_runs * self.epochs // len(self.searches)
        else:  # the first setting of each method shows how long runs take here
            self.budget = sum(lengths(self.epochs))
            self._search()
            plan = self.journal.decision("plan") or self.journal.decide("plan", self._plan())
            self.budget, self.seeds = plan["epochs"], plan["seeds"]
        self._say(f"{self.budget} epochs for each method, then {self.seeds} seeds of the best two")
        self._search()
        finalists = self._finalists()
        confirmed = tuple(self._confirm(search, best) for search, best in finalists)
        gain = gain_of(*confirmed)
        found = importances(self.searches)
        written = write_outcome(self.request.folder, self.searches, confirmed, gain, found, self.journal.used_s)
        written += picture(self.request.folder / "importance.svg", self.searches, found)
        self._say(gain.sentence)
        self._say(f"Written: {', '.join(map(str, written))}")
        self._event("end", gain=gain.as_dict(), written=[str(path) for path in written])
        return Tuned(gain, self.searches, tuple(written))

    def _train_teachers(self) -> None:
        """The runs that weights come from, as far as they are not there."""
        for wave in self.request.teachers:
            failed: list[str] = []

            def ended(folder: Path, outcome: Mapping[str, Any] | str, failed: list[str] = failed) -> None:
                if isinstance(outcome, str):
                    failed.append(f"{folder}: {outcome}")

            missing = [str(config.output) for config in wave if not (config.output / SUMMARY).is_file()]
            if missing:
                self._say(f"Needed first: {', '.join(missing)}")
            self.workers.run(((config.output, config) for config in wave), ended, test=True)
            if failed:
                raise RunError(f"the search needs the run {failed[0]}")

    def _search(self) -> None:
        """Go on with all searches until their budget is spent."""
        lines = Lines([search.run() for search in self.searches], lambda job: self.journal.result(job.key))

        def more() -> Any:
            given = lines.next()
            if given is None:
                return None
            place, job = given
            self._begun[job.key] = time.monotonic()
            return (place, job), self._config(job)

        def ended(item: Any, outcome: Mapping[str, Any] | str) -> None:
            place, job = item
            result = self._result(job, outcome)
            lines.ended(place, result)
            self._report(job, result)

        self.workers.drive(more, ended, test=False)

    def _config(self, job: Job) -> Any:
        folder = self.request.folder / "trials" / job.key
        return job.candidate.config(job.setting, epochs=job.epochs, given={"output": str(folder), "train": {"seed": 0}})

    def _result(self, job: Job, outcome: Mapping[str, Any] | str) -> Result:
        seconds = round(time.monotonic() - self._begun[job.key], 2)
        if isinstance(outcome, str):
            result = Result(None, seconds, failed=outcome)
        else:
            result = Result(outcome["validation"]["top1"], seconds, train_s=outcome["train_s"])
        self.journal.add(job.key, result, setting=job.setting)
        return result

    def _plan(self) -> dict[str, int]:
        """The budget in epochs and the seeds that the hours pay for, from the time of each method's first runs."""
        assert self.request.hours is not None
        each_s = [self._epoch_s(search) for search in self.searches]
        full_s = self.epochs * max(each_s)
        left_s = (3600 * self.request.hours - self.journal.used_s) * self.request.jobs
        seeds = max(1, min(self.request.seeds, int(left_s / (2 * full_s))))
        for_search_s = max(0.0, left_s - 2 * seeds * full_s)
        return {"epochs": self.budget + int(_OF_TIME * for_search_s / sum(each_s)), "seeds": seeds}

    def _epoch_s(self, search: Search) -> float:
        """Seconds of an epoch of a method's longest run, without the making of a teacher store."""
        results = [(epochs, result) for one in search.tried for epochs, result in one.results.items()]
        timed = [(epochs, result.train_s) for epochs, result in results if result.train_s]
        if not timed:
            failed = next((result.failed for _, result in results), "it did not run")
            raise RunError(f"the first setting of {search.candidate.name} failed: {failed}")
        epochs, train_s = max(timed)
        return _BESIDE_TRAINING * train_s / epochs

    def _finalists(self) -> tuple[tuple[Search, Tried], tuple[Search, Tried]]:
        """The baseline and the best other method, each with its best setting on validation."""
        found = [(search, best) for search in self.searches if (best := search.best) is not None]
        baseline = [one for one in found if one[0].candidate.is_baseline]
        others = [one for one in found if not one[0].candidate.is_baseline]
        if not baseline or not others:
            missing = self.searches[0] if not baseline else self.searches[1]
            reasons = [result.failed for one in missing.tried for result in one.results.values() if result.failed]
            raise RunError(f"no full run of {missing.candidate.name} succeeded: {(reasons or ['none was tried'])[-1]}")
        return baseline[0], max(others, key=lambda one: one[1].top1(self.epochs) or 0.0)

    def _confirm(self, search: Search, best: Tried) -> Confirmed:
        """Full runs of a setting with seeds that the search did not use, measured on the test split."""
        summaries: dict[int, Mapping[str, Any]] = {}
        failed: list[str] = []
        name, setting = search.candidate.name, best.job.setting
        folder = self.request.folder / "confirmed" / name / f"{best.job.number:03d}"
        runs = []
        for seed in range(1, self.seeds + 1):
            given = {"output": str(folder / f"seed{seed}"), "train": {"seed": seed}}
            runs.append((seed, search.candidate.config(setting, given=given)))

        def ended(seed: int, outcome: Mapping[str, Any] | str) -> None:
            if isinstance(outcome, str):
                failed.append(outcome)
                return
            summaries[seed] = outcome
            split = "test" if "test" in outcome else "validation"
            self._say(f"{self._clock()} {name}, seed {seed}: {split} {outcome[split]['top1']:.2f} %")

        self.workers.run(runs, ended, test=True)
        if not summaries:
            raise RunError(f"no run of the best setting of {name} succeeded: {failed[0]}")
        return Confirmed(name, setting, {seed: summaries[seed] for seed in sorted(summaries)}, folder)

    def _report(self, job: Job, result: Result) -> None:
        """A line for a run that ended: its accuracy, the best so far, and the time that is left."""
        best = {search.candidate.name: search.best for search in self.searches}
        shown = {name: one.top1(self.epochs) for name, one in best.items() if one is not None}
        came = f"failed: {result.failed}" if result.top1 is None else f"validation {result.top1:.2f} %"
        left = self._left_s()
        self._event(
            "run", run=job.key, setting=job.setting, **vars(result), best=shown, used_s=self.journal.used_s, left_s=left
        )
        tops = ", ".join(f"{name} {top1:.2f} %" for name, top1 in shown.items()) or "none yet"
        self._say(
            f"{self._clock()} {job.candidate.name} {job.number}, {job.epochs} epochs, {setting_text(job.setting)}:"
            f" {came}. Best full runs: {tops}. About {_minutes(left)} left"
        )

    def _left_s(self) -> float:
        """Seconds of what is planned, at the speed of the runs so far."""
        done = self.journal.results.values()
        epochs = sum(int(key.rpartition("-")[2].removesuffix("epochs")) for key in self.journal.results)
        each_s = sum(result.seconds for result in done) / max(1, epochs)
        left = sum(max(0, self.budget - search.spent) for search in self.searches)
        return each_s * (left + 2 * self.seeds * self.epochs) / self.request.jobs

    def _clock(self) -> str:
        return f"[{_minutes(self.journal.used_s)}]"

    def _say(self, text: str) -> None:
        if not isinstance(self.console, JsonConsole):
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _event(self, kind: str, **values: Any) -> None:
        if isinstance(self.console, JsonConsole):
            self.console.event(kind, **values)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
