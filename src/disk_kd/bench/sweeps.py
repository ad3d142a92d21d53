"""Cost per image against batch size, number of classes, and size of the dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from disk_kd.bench.cases import LOGITS, make_case
from disk_kd.bench.measure import Case, Rate, time_cases
from disk_kd.bench.settings import BenchSettings
from disk_kd.bench.workbench import Workbench

REPETITIONS = 3
"""Maximum number of timed steps."""
KEYS = ("ce", "kd_stored", "disk_stored", "helper")
KEYS_OF_SAMPLES = ("ce", "kd_stored", "disk_stored", "store")


@dataclass(frozen=True)
class Point:
    """One measurement of a sweep.

    Attributes:
        sweep: "batch_size", "classes" or "samples".
        rate: speed of the case at one value x.
        bytes_per_view: bytes of the stored outputs of all images under one view, if the case stores them.
    """

    sweep: str
    rate: Rate
    bytes_per_view: int | None = None

    @property
    def us_per_image(self) -> float:
        """Microseconds per image."""
        return 1e6 / self.rate.median


def sweep(
    name: str,
    settings: BenchSettings,
    device: torch.device,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """Time our cases for every value of one sweep, interleaved, with the first teacher.

    Args:
        name: "batch_size", "classes" or "samples".
        settings: values of the sweep, and all other settings.
        device: device of the measurement.
        folder: folder for stored outputs.
        progress: as for `time_cases`.
    """
    values = {
        "batch_size": settings.sweep_batch_sizes,
        "classes": settings.sweep_classes,
        "samples": settings.sweep_samples,
    }[name]
    cases: list[Case] = []
    stored_bytes: dict[int, int] = {}
    for value in values:
        bench = Workbench(_point(settings, name, value), device, folder / f"{name}-{value}", views=1)
        bench.folder.mkdir()
        for key in KEYS_OF_SAMPLES if name == "samples" else KEYS:
            case = make_case(bench, key, settings.teachers[0])
            cases.append(replace(case, x=value))
        stored_bytes[value] = bench.store(settings.teachers[0], LOGITS).bytes_per_sample() * bench.settings.samples
    rates = time_cases(cases, min(REPETITIONS, settings.repetitions), device, progress)
    return [Point(name, rate, stored_bytes[rate.x] if rate.key == "store" else None) for rate in rates]


def _point(settings: BenchSettings, name: str, value: int) -> BenchSettings:
    """One value of a sweep. It is not compiled, which would take a minute each; there are samples for at least one
    batch.
    """
    enough = {"samples": max(settings.samples, value)} if name == "batch_size" else {}
    changed: dict[str, Any] = {**enough, name: value}
    return replace(settings, compile=False, memory=False, sweeps=False, **changed)
