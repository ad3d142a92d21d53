"""Stopping on request: a cluster's scheduler sends a signal, and the run saves its state before it ends."""

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
"""Exit code of a stopped run that can be resumed: EX_TEMPFAIL, "try again later"."""
_KEY = "stop before step"


class StoppedError(RunError):
    """The run was asked to stop and is saved. It can be resumed."""


class StopSignal(KeyboardInterrupt):
    """A signal asked a command to stop during work that need not be finished. All files are complete."""


@contextmanager
def stop_signals() -> Iterator[None]:
    """Inside the block a stop signal ends the block, as Ctrl-C does, unless a `StopRequest` handles it.

    Raises:
        StopSignal: a stop signal arrived.
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
    raise StopSignal("asked to stop; go on with --resume (compare, tune, store-teacher: the same command again)")


class StopRequest:
    """Whether a run was asked to stop, by a signal to any rank inside the block.

    All ranks stop before the same step: the rank with the signal names a step that no rank can have started.

    Args:
        every: number of steps after which all ranks have waited for each other. It is 1 on a CPU, where steps end
            together. On GPUs it is the interval between two readings of the metrics, in which a rank may queue steps
            far ahead of another.
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
        """Whether to stop before the step with this number."""
        if ranks.size() == 1:
            return self._asked
        if self._asked:
            ranks.post(_KEY, str(max(step + 2, (step // self._every + 1) * self._every)))
        before = ranks.posted(_KEY)
        return before is not None and step >= int(before)
