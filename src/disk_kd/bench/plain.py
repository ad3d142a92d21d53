"""The bound and the peers in separate processes with PyTorch's defaults, without our settings of the allocator."""

from __future__ import annotations

from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from disk_kd.bench.cases import make_case
from disk_kd.bench.measure import Case, synchronise
from disk_kd.bench.peers import Peers
from disk_kd.bench.settings import BenchSettings
from disk_kd.bench.workbench import Workbench
from disk_kd.devices import pick_device
from disk_kd.errors import RunError


class PlainProcess:
    """A process with cases. It runs a repetition of one on request, so that they interleave with ours.

    Args:
        settings: settings of the benchmark.
        what: the bound alone, because the allocator depends on earlier work of the process; or the peers' cases.

    Raises:
        RunError: the process died.
    """

    def __init__(self, settings: BenchSettings, what: Literal["bound", "peers"]) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon: the peers' DataLoaders have worker processes of their own.
        self._process = context.Process(target=_serve, args=(theirs, settings, what))
        self._process.start()
        theirs.close()
        self._about: list[tuple[str, str, str | None]] = self._receive()

    def cases(self) -> list[Case]:
        """The cases of the process."""
        numbered = enumerate(self._about)
        return [Case(key, title, partial(self._run, number), teacher) for number, (key, title, teacher) in numbered]

    def __enter__(self) -> PlainProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.is_alive():
            self._connection.send(None)
        self._process.join()

    def _run(self, number: int) -> int:
        self._connection.send(number)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            raise RunError("a process of the benchmark died; its error is printed above") from None


def _serve(connection: Connection, settings: BenchSettings, what: str) -> None:
    """The work of the process, until it gets None as the number of a case."""
    device = pick_device(settings.device)
    with TemporaryDirectory() as folder:
        bench = Workbench(settings, device, Path(folder))
        peers = Peers(bench) if what == "peers" else None
        cases = [make_case(bench, "bound", settings.teachers[0])] if peers is None else peers.cases()
        connection.send([(case.key, case.title, case.teacher) for case in cases])
        while (number := connection.recv()) is not None:
            images = cases[number].run()
            synchronise(device)
            connection.send(images)
        if peers is not None:
            peers.close()
