"""The runs of a search in worker processes, for several searches at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, TypeVar

from disk_kd.comparison.worker import outcome_of, run_to_end, stop_workers, worker_processes
from disk_kd.config import RunConfig
from disk_kd.training import StoppedError

Item = TypeVar("Item")
Outcome = dict[str, Any] | str
"""The summary of a run, or why there is none."""


class Workers:
    """Worker processes. A run whose process dies is run once more, alone.

    Args:
        jobs: runs at a time.
        make: makes the processes.
    """

    def __init__(self, jobs: int, make: Callable[[int], Executor] = worker_processes) -> None:
        self.jobs, self._make = jobs, make
        self._pool = make(jobs)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, error: type[BaseException] | None, *about: object) -> None:
        if error is not None and isinstance(self._pool, ProcessPoolExecutor):
            stop_workers(self._pool)
        self._pool.shutdown(cancel_futures=True)

    def submit(self, config: RunConfig, test: bool) -> Future[Outcome]:
        """Start a run; a pool that died is made anew."""
        try:
            return self._pool.submit(run_to_end, config, test)
        except BrokenProcessPool:
            self._renew()
            return self._pool.submit(run_to_end, config, test)

    def again(self, config: RunConfig, test: bool) -> Outcome:
        """The run once more, in a new pool, with no other run beside it."""
        self._renew()
        return outcome_of(self.submit(config, test))

    def _renew(self) -> None:
        self._pool.shutdown()
        self._pool = self._make(self.jobs)

    def run(
        self, items: Iterable[tuple[Item, RunConfig]], ended: Callable[[Item, Outcome], None], *, test: bool
    ) -> None:
        """Run all, as many at a time as there are jobs.

        Args:
            items: runs, each with what `ended` is told of it.
            ended: is called as runs end.
            test: whether the runs are measured on the test split.

        Raises:
            StoppedError: a run was asked to stop.
        """
        waiting = deque(items)

        self.drive(lambda: waiting.popleft() if waiting else None, ended, test=test)

    def drive(
        self,
        more: Callable[[], tuple[Item, RunConfig] | None],
        ended: Callable[[Item, Outcome], None],
        *,
        test: bool,
    ) -> None:
        """Run what `more` gives, which is asked whenever a worker is free, until nothing runs and nothing is given."""
        running: dict[Future[Outcome], tuple[Item, RunConfig]] = {}
        while True:
            while len(running) < self.jobs and (given := more()):
                running[self.submit(given[1], test)] = given
            if not running:
                return
            done = wait(running, return_when=FIRST_COMPLETED).done
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                done = wait(running).done  # one process that dies ends all
            for future in [each for each in running if each in done]:
                item, config = running.pop(future)
                if isinstance(stopped := future.exception(), StoppedError):
                    raise stopped
                died = isinstance(future.exception(), BrokenProcessPool)
                ended(item, self.again(config, test) if died else outcome_of(future))


Wave = Generator[list[Any], list[Any], None]
"""Yields jobs, and is sent their results."""


@dataclass(eq=False)
class _Line:
    """One search among several that share the workers: its jobs at hand and their results."""

    wave: Wave
    known: Callable[[Any], Any]
    jobs: list[Any] = field(default_factory=list)
    results: dict[int, Any] = field(default_factory=dict)
    todo: deque[int] = field(default_factory=deque)

    def advance(self) -> bool:
        """Send the results and take the next jobs, until one was not done before. Returns whether there is one."""
        while not self.todo:
            try:
                if self.jobs:
                    self.jobs = self.wave.send([self.results[place] for place in range(len(self.jobs))])
                else:
                    self.jobs = next(self.wave)
            except StopIteration:
                return False
            found = {place: self.known(job) for place, job in enumerate(self.jobs)}
            self.results = {place: result for place, result in found.items() if result is not None}
            self.todo = deque(place for place in found if place not in self.results)
        return True


class Lines:
    """Several searches in parallel; each goes on as soon as its own results are there.

    Args:
        waves: the generators of the searches.
        known: the result of a job that was done before; None of one that was not.
    """

    def __init__(self, waves: Iterable[Wave], known: Callable[[Any], Any]) -> None:
        lines = [_Line(wave, known) for wave in waves]
        self._open = deque(line for line in lines if line.advance())

    def next(self) -> tuple[tuple[_Line, int], Any] | None:
        """A place and a job for a free worker; None: there is none until another result is there."""
        for line in list(self._open):
            if line.todo:
                place = line.todo.popleft()
                self._open.remove(line)
                self._open.append(line)
                return (line, place), line.jobs[place]
        return None

    def ended(self, place: tuple[_Line, int], result: Any) -> None:
        """The result of a job that `next` gave."""
        line, number = place
        line.results[number] = result
        if len(line.results) == len(line.jobs) and not line.advance():
            self._open.remove(line)
