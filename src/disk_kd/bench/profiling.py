"""The time of a step by operator, from torch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from disk_kd.bench.cases import make_case
from disk_kd.bench.settings import BenchSettings
from disk_kd.bench.workbench import Workbench
from disk_kd.devices import pick_device
from disk_kd.errors import RunError
from disk_kd.memory import keep_memory

PROFILED = ("bound", "disk_stored", "disk_online")
_ROWS = 8


def profiles(settings: BenchSettings) -> str:
    """Markdown tables of the operators that take the most time in an epoch of some cases, after a warm-up epoch.

    It runs in a separate process, where the profiler sees only the case.

    Raises:
        RunError: the process died.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_profiles, settings).result()
        except BrokenProcessPool:
            raise RunError("the profiler's process died; give --profile false") from None


def _profiles(settings: BenchSettings) -> str:
    keep_memory()
    with TemporaryDirectory() as folder:
        bench = Workbench(settings, pick_device(settings.device), Path(folder))
        return _sections(bench, settings.teachers[0])


def _sections(bench: Workbench, teacher: str) -> str:
    sections = []
    for key in PROFILED:
        case = make_case(bench, key, teacher)
        case.run()
        sections += [f"## {case.title}", "", *_table(_shares(case.run, bench.device)), ""]
    return "\n".join(sections)


def _shares(run: Callable[[], int], device: torch.device) -> list[tuple[str, float]]:
    """Operators and their share of the profiled time, largest first."""
    on_device = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device
    with profile(activities=activities) as seen:
        run()
    attribute = "self_device_time_total" if on_device else "self_cpu_time_total"
    times = {event.key: getattr(event, attribute) for event in seen.key_averages()}
    total = sum(times.values())
    return sorted(((name, time / total) for name, time in times.items()), key=lambda entry: -entry[1])


def _table(shares: list[tuple[str, float]]) -> list[str]:
    rows = [f"| {_short(name)} | {100 * share:.1f} |" for name, share in shares[:_ROWS]]
    rest = sum(share for _, share in shares[_ROWS:])
    return ["| operator | % of the time |", "|---|---|", *rows, f"| {len(shares[_ROWS:])} others | {100 * rest:.1f} |"]


def _short(name: str) -> str:
    """The name of an operator, shortened: compiled graphs have a hash as name."""
    return "compiled graph (fused pointwise and reductions)" if "CompiledFxGraph" in name else name
