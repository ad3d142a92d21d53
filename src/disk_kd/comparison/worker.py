"""The worker processes of a comparison: each takes a share of the cores, a GPU if there are any, and one run at a
time.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console

from disk_kd import ranks
from disk_kd.build import load_data
from disk_kd.comparison.placement import gpu_of, placed
from disk_kd.config import RunConfig
from disk_kd.data import Dataset
from disk_kd.data.settings import DataSettings
from disk_kd.errors import DiskKDError
from disk_kd.memory import keep_memory
from disk_kd.plugins import import_modules
from disk_kd.run import execute
from disk_kd.run_folder import LOCK, BusyError
from disk_kd.training import StoppedError

_gpu: int | None = None
"""This worker's."""


def worker_processes(jobs: int) -> ProcessPoolExecutor:
    """Processes for `run_to_end`.

    Args:
        jobs: how many; the cores are shared out among them.
    """
    context = get_context("spawn")
    begun = context.Value("i", 0)
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(jobs, begun))


def stop_workers(pool: ProcessPoolExecutor) -> None:
    """End a pool's own processes, not every child of the caller's. A run that trains saves itself first."""
    for worker in list((pool._processes or {}).values()):
        worker.terminate()


def _begin(jobs: int, begun: Any) -> None:
    """A worker's share of the cores, its GPU if there are any, and its end with the comparison.

    Args:
        jobs: workers in all.
        begun: how many began before, a number that all share.
    """
    global _gpu
    with begun.get_lock():
        worker, begun.value = begun.value, begun.value + 1
    _gpu = gpu_of(worker, torch.cuda.device_count())
    Thread(target=_end_with_parent, daemon=True).start()
    keep_memory()
    torch.set_num_threads(max(1, ranks.cores() // jobs))


def _end_with_parent() -> None:
    """Without it the worker of a killed comparison would train on, then wait for ever. Its run can be resumed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_to_end(config: RunConfig, test: bool = True) -> dict[str, Any] | str:
    """The run's summary, or why there is none. Where another comparison does the same run, it waits for it.

    Args:
        config: of the run.
        test: whether the run is measured on the test split. Without it the run has no test split.
    """
    try:
        import_modules(config.imports)
        config = placed(config, _gpu)
        while True:
            try:
                return execute(config, Console(quiet=True), load=_load_once if test else _load_without_test)
            except BusyError:
                with FileLock(config.output / LOCK):
                    pass
    except StoppedError:
        raise
    except (DiskKDError, OSError) as error:
        return str(error)


@lru_cache(maxsize=1)
def _load_once(data: DataSettings) -> Dataset:
    """The dataset; a worker's runs mostly share one, which takes seconds to decode."""
    return load_data(data)


def _load_without_test(data: DataSettings) -> Dataset:
    return replace(_load_once(data), test=None)


def outcome_of(future: Future[dict[str, Any] | str]) -> dict[str, Any] | str:
    """What `run_to_end` gave, or the first line of what it or its process died of."""
    try:
        return future.result()
    except BrokenProcessPool:
        return "its process ended abruptly; out of memory? lower --jobs or train.batch_size"
    except StoppedError as error:
        return str(error)
    except Exception as error:  # other runs go on, whatever one of them died of
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
