"""Peak memory of a training run, measured in its own process."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from disk_kd.bench.cases import ALONE, TAUGHT
from disk_kd.bench.measure import synchronise
from disk_kd.bench.settings import BenchSettings
from disk_kd.bench.workbench import Workbench
from disk_kd.devices import pick_device
from disk_kd.errors import RunError
from disk_kd.memory import keep_memory, peak_host_bytes

CASES = ("ce", "kd_online", "disk_stored")
_IMAGES = 10_000
"""Number of steps until two groups of the loader are in memory, which is the peak."""


@dataclass(frozen=True)
class Peak:
    """Peak memory of a process.

    Attributes:
        key: key of the case.
        teacher: name of its teacher, if it has one.
        host_bytes: peak resident memory, with Python, the libraries, and mapped files.
        device_bytes: peak of tensors on the accelerator; None on a CPU.
    """

    key: str
    teacher: str | None
    host_bytes: int
    device_bytes: int | None


def peak_memory(key: str, settings: BenchSettings) -> Peak:
    """Train with `settings.memory_samples` images in memory until the peak is reached.

    A teacher store is built in the same process.

    Raises:
        RunError: the process died.
    """
    settings = replace(settings, samples=settings.memory_samples)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            host_bytes, device_bytes = pool.submit(_train, key, settings).result()
        except BrokenProcessPool:
            raise RunError(
                f"memory of {key}: its process died, perhaps for lack of memory; give --memory false"
            ) from None
    return Peak(key, settings.teachers[0] if key in TAUGHT else None, host_bytes, device_bytes)


def _train(key: str, settings: BenchSettings) -> tuple[int, int | None]:
    """Runs in the separate process."""
    keep_memory()
    device = pick_device(settings.device)
    steps = math.ceil(_IMAGES / settings.batch_size)
    with TemporaryDirectory() as folder:
        bench = Workbench(settings, device, Path(folder), views=1)
        if key in ALONE:
            run = ALONE[key][1](bench, steps=steps)
        else:
            run = TAUGHT[key][1](bench, settings.teachers[0], steps=steps)
        run()
        synchronise(device)
    return peak_host_bytes(), torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
