"""Timing of cases side by side, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """Something to be timed.

    Attributes:
        key: what others know it by.
        title: what a person reads.
        run: one repetition; returns the images that went through, a method's by its student alone.
        teacher: the teacher's name, where the cost depends on it.
        x: the value of what is swept, in a sweep.
    """

    key: str
    title: str
    run: Callable[[], int]
    teacher: str | None = None
    x: int = 0


@dataclass(frozen=True)
class Rate:
    """What the repetitions of a case gave, in images a second."""

    key: str
    title: str
    teacher: str | None
    images_per_s: tuple[float, ...]
    x: int = 0

    @property
    def median(self) -> float:
        """The value that counts."""
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
    """Run every case once in each repetition, so that a slow moment of the machine falls on all of them.

    A first repetition, not counted, warms up: it compiles, and starts worker processes.

    Args:
        cases: in the order they run.
        repetitions: how many count.
        device: waited for at both ends of each measurement.
        progress: called after each run with the runs done and the runs in all.
        clock: seconds.

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
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
