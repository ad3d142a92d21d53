"""A contestant in its own process, which works in its turn and waits otherwise."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import get_context, get_start_method, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import psutil

from disk_kd import ranks
from disk_kd.bench.measure import synchronise
from disk_kd.bench.to_accuracy.contestants import CONTESTANTS
from disk_kd.bench.to_accuracy.curves import Curve, Point, curve_of
from disk_kd.bench.to_accuracy.training import Training, own_compiler_cache, top1
from disk_kd.build import load_data
from disk_kd.config import RunConfig
from disk_kd.data import Dataset
from disk_kd.devices import pick_device, place
from disk_kd.errors import DiskKDError, RunError
from disk_kd.memory import keep_memory
from disk_kd.plugins import import_modules
from disk_kd.training.checkpoint import load_checkpoint, save_checkpoint

STATE = "state.safetensors"
STALLED_S = 300.0
"""A process that computes for less than `_LEAST_LOAD` of this time does nothing any more."""
_LEAST_LOAD = 0.01
_GRACE_S = 10.0
"""Seconds between the request to end and the kill."""


class Turns(Protocol):
    """A training that is done in turns."""

    name: str

    def turn(self) -> Curve:
        """Do the next part."""

    def close(self, kill: bool = False) -> None:
        """Stop."""


class ContestantProcess:
    """The process of a contestant, as seen from the main process.

    Args:
        name: key of `CONTESTANTS`.
        config: configuration of its run.
        imports: the user's modules that the run needs.
        workers: number of worker processes of another tool's loader; None: one for each core.
    """

    def __init__(self, name: str, config: RunConfig, imports: list[str], workers: int | None) -> None:
        context = get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        # Not a daemon: the loaders of others have worker processes of their own.
        self._process = context.Process(
            target=_serve, args=(theirs, get_start_method(), name, config, imports, workers)
        )
        self._process.start()
        theirs.close()

    def turn(self) -> Curve:
        """Let it do its next part: the preparation, or an epoch. Nothing else runs at the same time.

        Raises:
            DiskKDError: an error of the contestant's input.
            RunError: the process died, or does nothing any more.
        """
        try:
            self._connection.send(True)
            self._wait()
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise RunError(f"the process of {self.name} died; its error is printed above") from None
        if isinstance(answer, Exception):
            raise answer
        return curve_of(answer)

    def close(self, kill: bool = False) -> None:
        """End the process, at once if it is working."""
        self._connection.close()
        if kill:
            self._process.terminate()
            self._process.join(_GRACE_S)
            self._process.kill()
        self._process.join()

    def _wait(self) -> None:
        """Wait for the answer.

        Raises:
            RunError: the process and its own processes hardly compute for `STALLED_S`. A loader whose worker was
                killed can wait for ever.
        """
        before = self._cpu_s()
        while not self._connection.poll(STALLED_S):
            now = self._cpu_s()
            if 0 <= now - before < _LEAST_LOAD * STALLED_S:
                raise RunError(
                    f"the process of {self.name} has done nothing for {STALLED_S:.0f} s; did one of its workers die?"
                    " Start the command again to go on, or leave the contestant out"
                )
            before = now

    def _cpu_s(self) -> float:
        """Processor time that the process and its own processes have used, in seconds."""
        try:
            own = psutil.Process(self._process.pid)
            times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
        except psutil.Error:  # one ended just now
            return -1.0
        return sum(time.user + time.system for time in times)


def _serve(
    connection: Connection, method: str, name: str, config: RunConfig, imports: list[str], workers: int | None
) -> None:
    """The work of the process: one part for each message, until the other side closes.

    Worker processes of its loader start by `method`, as in a user's program, not by this process's own start method.
    """
    set_start_method(method, force=True)
    logging.getLogger("torchdistill").setLevel(logging.WARNING)
    work = None
    try:
        while connection.recv():
            try:
                if work is None:
                    import_modules(imports)
                    work = Work(name, config, workers)
                work.next()
                connection.send(asdict(work.curve))
            except DiskKDError as error:
                connection.send(error)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        if work is not None and work.training is not None:
            work.training.close()


class Work:
    """The parts of a contestant's training. Each is timed, and the state is saved after each."""

    def __init__(
        self, name: str, config: RunConfig, workers: int | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.contestant, self.config, self.clock = CONTESTANTS[name], config, clock
        self.workers = ranks.cores() if workers is None else workers
        self.folder: Path = config.runs
        self.device = pick_device(config.train.device)
        self.curve = Curve(name, self.contestant.title, self.contestant.is_peer, config.train.epochs)
        self.training: Training | None = None
        self.dataset: Dataset | None = None
        os.environ |= own_compiler_cache(self.folder)
        if not self.contestant.is_peer:
            keep_memory()

    def next(self) -> None:
        """Prepare or resume in the first call; train one epoch in each later call."""
        if self.training is None:
            self._prepare()
        elif not self.curve.done:
            self._epoch()

    def _prepare(self) -> None:
        if not (self.folder / STATE).exists():  # what a preparation that was killed left would make this one cheaper
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        start = self.clock()
        self.dataset = load_data(self.config.data)
        self.training = self._make(self.dataset)
        synchronise(self.device)
        self.curve.prepare_s = self.clock() - start
        if (self.folder / STATE).exists():
            saved = load_checkpoint(self.folder / STATE)
            self.curve = curve_of(saved["curve"])
            self.training.load(saved["training"])
        else:
            self._save()

    def _make(self, dataset: Dataset) -> Training:
        if self.contestant.kind == "ours":
            from disk_kd.bench.to_accuracy.ours import OurTraining

            return OurTraining(self.config, dataset, self.device)
        from disk_kd.bench.to_accuracy.others import KINDS

        return KINDS[self.contestant.kind](self.config, dataset, self.device, self.workers)

    def _epoch(self) -> None:
        assert self.training is not None
        assert self.dataset is not None
        start = self.clock()
        images = self.training.epoch(len(self.curve.points))
        synchronise(self.device)
        seconds = self.clock() - start
        before = self.curve.points[-1].images if self.curve.points else 0
        split = self.dataset.validation
        assert split is not None
        point = Point(
            epoch=len(self.curve.points) + 1,
            images=before + images,
            seconds=self.curve.seconds + seconds,
            top1=top1(self.training.student, place(split, self.device), self.device),
        )
        self.curve.points.append(point)
        if self.curve.done and self.dataset.test is not None:
            self.curve.test_top1 = top1(self.training.student, place(self.dataset.test, self.device), self.device)
        self._save()

    def _save(self) -> None:
        assert self.training is not None
        state: dict[str, Any] = {"curve": asdict(self.curve), "training": self.training.state()}
        save_checkpoint(self.folder / STATE, state)
