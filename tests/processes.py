"""Commands in processes of their own, forked from the one of the tests, so that none imports torch anew.

They are what `python -m disk_kd` starts: their own memory, working directory, environment, output and signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TextIO

import psutil
import torch

from disk_kd.cli import main
from disk_kd.comparison import worker as comparison

LIMIT_S = 120
_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""


class Command:
    """A command of disk-kd that runs.

    Args:
        arguments: of the command.
        folder: its working directory; None: that of the tests.
        environment: variables over those of the tests.
        before: is called in the process before the command.
        workers: how its own processes start; "fork": without an import of anything.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path | None = None,
        environment: Mapping[str, str] = {},
        before: Callable[[], object] = lambda: None,
        workers: str = "spawn",
    ) -> None:
        self._said = {name: tempfile.TemporaryFile("w+") for name in ("stdout", "stderr")}  # noqa: SIM115
        self._code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(arguments, folder, environment, before, workers)

    def _run(
        self,
        arguments: Sequence[str],
        folder: Path | None,
        environment: Mapping[str, str],
        before: Callable[[], object],
        workers: str,
    ) -> None:
        code = 1
        with contextlib.suppress(AttributeError):  # on Linux it ends with the tests, whatever becomes of them
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            for number, name in enumerate(("stdout", "stderr"), 1):
                os.dup2(self._said[name].fileno(), number)
                setattr(sys, name, open(number, "w", buffering=1, closefd=False))  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background tests ignore it
            warnings.resetwarnings()  # pytest makes some an error
            comparison.get_context = lambda method: multiprocessing.get_context(workers)
            os.environ.update(environment)
            if folder is not None:
                os.chdir(folder)
            torch.set_num_threads(1)
            before()
            code = main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """The exit code, minus the signal's number where one ended it."""
        deadline = time.monotonic() + LIMIT_S
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.002)
        return code

    def wait_until(self, ready: Callable[[], object]) -> None:
        """Wait for what the command does while it runs."""
        deadline = time.monotonic() + LIMIT_S
        while not ready():
            assert self.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.002)

    def said(self) -> str:
        """Its messages and errors so far."""
        return "".join(self.read(file) for file in self._said.values())

    @property
    def errors(self) -> str:
        """What it wrote to the standard error so far."""
        return self.read(self._said["stderr"])

    @staticmethod
    def read(file: TextIO) -> str:
        """All of a file that another process writes, whose position this one shares."""
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()

    def send(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to it alone; gives the processes that it had started."""
        children = psutil.Process(self.pid).children(recursive=True)
        os.kill(self.pid, number)
        return children


def start_ranks(arguments: Sequence[str], folder: Path, count: int = 2) -> list[Command]:
    """One command in as many processes, each with the variables that torchrun gives it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
    return [Command(arguments, folder, shared | own) for own in ranks]


def done_anew(arguments: Sequence[str]) -> int:
    """The exit code of a command in a process that has imported disk-kd, and knows nothing of what the tests did."""
    process = forking("spawn").Process(target=_do_and_exit, args=(arguments,))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode is not None
    return process.exitcode


def _do_and_exit(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    sys.exit(main(arguments))


def forking(method: str) -> ForkServerContext:
    """In the place of `get_context("spawn")`: processes are forked from one that has imported all of disk-kd."""
    assert method == "spawn"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["disk_kd.comparison.run", "disk_kd.bench.run", "sklearn.datasets"])
    return context
