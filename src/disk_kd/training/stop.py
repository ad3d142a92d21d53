"""Stopping when asked to: a scheduler that wants its machine back sends a signal, and the run saves itself first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from disk_kd import ranks
from disk_kd.errors import RunError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75
"""The exit code of a run that was stopped and can go on: EX_TEMPFAIL, "try again later"."""
_KEY = "stop before step"


class StoppedError(RunError):
    """The run was asked to stop, has saved itself, and can go on."""


class StopSignal(KeyboardInterrupt):
    """A signal asked a command to stop while it did something that need not be finished: all files are whole."""


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within the block a signal that asks to stop ends it, as Ctrl-C does, unless a `StopRequest` waits for it.

    Raises:
        StopSignal: such a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    raise StopSignal("asked to stop; go on with --resume (compare, store-teacher: the same command again)")


class StopRequest:
    """Whether a run was asked to stop. Signals count from the block's begin to its end, on any rank.

    All ranks stop before the same step: the one that is asked names a step that none can have begun.

    Args:
        every: steps after which all ranks have waited for each other: 1 on a CPU, where steps end together; on GPUs
            those from one reading of the metrics to the next, in which one rank may queue steps far ahead of another.
    """

    def __init__(self, every: int = 1) -> None:
        self._every = every
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread may receive signals; a run in another one leaves them to the program around it.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def now(self, step: int) -> bool:
        """Whether to stop before the step of this number."""
        if ranks.size() == 1:
            return self._asked
        if self._asked:
            ranks.post(_KEY, str(max(step + 2, (step // self._every + 1) * self._every)))
        before = ranks.posted(_KEY)
        return before is not None and step >= int(before)
