"""Timing of cases in turn, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """A case to time.

    Attributes:
        key: key of the case.
        title: title for tables.
        run: one repetition. Returns the number of processed images; of a method, those of its student.
        teacher: name of the teacher, if the cost depends on it.
        x: value of the swept setting, in a sweep.
    """

    key: str
    title: str
    run: Callable[[], int]
    teacher: str | None = None
    x: int = 0


@dataclass(frozen=True)
class Rate:
    """The speeds of a case's repetitions, in images per second."""

    key: str
    title: str
    teacher: str | None
    images_per_s: tuple[float, ...]
    x: int = 0

    @property
    def median(self) -> float:
        """The median, which counts."""
        return statistics.median(self.images_per_s)

    @property
    def low(self) -> float:
        """The slowest repetition."""
        return min(self.images_per_s)

    @property
    def high(self) -> float:
        """The fastest repetition."""
        return max(self.images_per_s)


def time_cases(
    cases: Sequence[Case],
    repetitions: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Rate]:
    """Run every case once in each repetition, so that slow moments of the machine affect all cases.

    The first repetition is a warm-up and does not count: it compiles and starts worker processes.

    Args:
        cases: the cases, in order.
        repetitions: number of repetitions that count.
        device: device to wait for before and after each measurement.
        progress: called after each run with the number of finished runs and of all runs.
        clock: returns seconds.

    Returns:
        A rate for each case.
    """
    rates: list[list[float]] = [[] for _ in cases]
    total = (repetitions + 1) * len(cases)
    for repetition in range(repetitions + 1):
        for position, case in enumerate(cases):
            synchronise(device)
            start = clock()
            images = case.run()
            synchronise(device)
            seconds = clock() - start
            if repetition:
                rates[position].append(images / seconds)
            if progress is not None:
                progress(repetition * len(cases) + position + 1, total)
    pairs = zip(cases, rates, strict=True)
    return [Rate(case.key, case.title, case.teacher, tuple(rate), case.x) for case, rate in pairs]


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
