"""Latency of several models, measured in turn, and the memory of an exported file.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disk_kd import ranks
from disk_kd.export import peak
from disk_kd.export.quantise import Classifier

BATCH = 32
BUDGET_S = 1.0
"""Seconds for one batch size and one number of threads, over all models."""
_LEAST_ROUNDS, _MOST_ROUNDS, _WARM_UP = 5, 300, 3


@dataclass(frozen=True)
class Contestant:
    """A model whose latency is measured.

    Attributes:
        name: "export", "float" or "teacher".
        runtime: name of the runtime.
        open: gives the classifier with this number of threads.
        shape: (C, H, W) of its images.
    """

    name: str
    runtime: str
    open: Callable[[int], Classifier]
    shape: tuple[int, int, int]


def latencies(contestants: Sequence[Contestant], batches: Sequence[int] = (1, BATCH)) -> list[dict[str, Any]]:
    """Median and 95th percentile of the time of a batch, for each model, batch size and number of threads.

    The models take turns, so that other work on the machine affects them alike.

    Returns:
        One row for each: "model", "runtime", "batch", "threads", "median_ms", "p95_ms", "rounds".
    """
    found = []
    for threads in sorted({1, ranks.cores()}):
        with _torch_threads(threads):
            models = {one.name: one.open(threads) for one in contestants}
            for batch in batches:
                images = {one.name: torch.rand(batch, *one.shape) for one in contestants}
                times = _in_turn(models, images)
                for one in contestants:
                    found.append(
                        {
                            "model": one.name,
                            "runtime": one.runtime,
                            "batch": batch,
                            "threads": threads,
                            "median_ms": round(1000 * statistics.median(times[one.name]), 4),
                            "p95_ms": round(1000 * _p95(times[one.name]), 4),
                            "rounds": len(times[one.name]),
                        }
                    )
    return found


@torch.no_grad()
def _in_turn(models: Mapping[str, Classifier], images: Mapping[str, Tensor]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(_WARM_UP):
        for name, model in models.items():
            model(images[name])
    end = time.perf_counter() + BUDGET_S
    for done in range(_MOST_ROUNDS):
        if done >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        for name, model in models.items():
            start = time.perf_counter()
            model(images[name])
            times[name].append(time.perf_counter() - start)
    return times


def _p95(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(kind: str, path: Path, shape: Sequence[int]) -> dict[str, int] | None:
    """Memory of a process that runs one batch of an exported graph; None if it cannot be measured.

    Returns:
        "runtime_bytes": peak with the runtime alone; "model_bytes": what the file and one batch add to it.
    """
    command = [sys.executable, "-P", peak.__file__, kind, str(path), *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    before, after = map(int, done.stdout.split()[-2:])
    return {"runtime_bytes": before, "model_bytes": after - before}
