"""Runs a benchmark and writes its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from disk_kd.bench.cases import LOGITS, our_cases
from disk_kd.bench.measure import Rate, time_cases
from disk_kd.bench.peak import CASES, Peak, peak_memory
from disk_kd.bench.peers import torchdistill_installed
from disk_kd.bench.plain import PlainProcess
from disk_kd.bench.plots import LABELS, figure, svg
from disk_kd.bench.profiling import profiles
from disk_kd.bench.report import Results, csv_text, markdown, rows, sweep_rows, tables
from disk_kd.bench.settings import BenchSettings, check_models
from disk_kd.bench.sweeps import Point, sweep
from disk_kd.bench.targets import judge
from disk_kd.bench.workbench import Workbench
from disk_kd.devices import pick_device
from disk_kd.errors import RunError
from disk_kd.files import replacing, write_text
from disk_kd.summary import environment


def bench(settings: BenchSettings, console: Console) -> None:
    """Measure what `settings` describes, print the tables, and write them to `settings.output`.

    Raises:
        ConfigError: there is no such device.
        ModelError: a model's name is unknown, or it does not accept such images.
        RunError: the output folder cannot be created, or a process ran out of memory.
    """
    device = pick_device(settings.device)
    check_models(settings)
    _make_folder(settings.output)
    settings = replace(settings, compile=settings.compile and _compiles(device, console))
    profile = profiles(settings) if settings.profile else ""
    peaks = _peaks(settings, console) if settings.memory else []
    with TemporaryDirectory(prefix="disk-kd-bench-") as folder:
        rates, store_bytes = _rates(settings, device, Path(folder), console)
        points = _points(settings, device, Path(folder), console) if settings.sweeps else []
    targets = judge(rates, peaks, settings, on_cpu=device.type == "cpu")
    results = Results(
        settings, _environment(device, settings.peers), rates, peaks, store_bytes, targets, points, profile
    )
    for table in tables(results):
        console.print(table)
    if settings.output is not None:
        write(results, settings.output)
        console.print(f"Written: {settings.output}", highlight=False, soft_wrap=True)


def write(results: Results, folder: Path) -> None:
    """Tables, figure and environment as files."""
    settings = {name: value for name, value in asdict(results.settings).items() if name != "output"}
    facts = {**results.environment, "settings": settings}
    write_text(folder / "environment.json", json.dumps(facts, indent=2) + "\n")
    write_text(folder / "epochs.csv", csv_text(rows(results)))
    if results.points:
        write_text(folder / "sweeps.csv", csv_text(sweep_rows(results.points)))
    write_text(folder / "table.md", markdown(results))
    if results.profile:
        write_text(folder / "profile.md", results.profile)
    with replacing(folder / "bench.svg") as temporary:
        temporary.write_bytes(svg(figure(results.rates, results.points)))


def _rates(
    settings: BenchSettings, device: torch.device, folder: Path, console: Console
) -> tuple[list[Rate], dict[str, int]]:
    """Rates of our cases and the peers', and the bytes of a stored view."""
    bench = Workbench(settings, device, folder)
    _say(console, "Teachers' outputs for two views are stored first.")
    if settings.peers and not torchdistill_installed():
        _say(console, "torchdistill is not installed: its case is left out (pip install torchdistill).")
    with ExitStack() as stack:
        bound = stack.enter_context(PlainProcess(settings, "bound"))
        cases = bound.cases() + our_cases(bench)
        if settings.peers:
            cases += stack.enter_context(PlainProcess(settings, "peers")).cases()
        progress = stack.enter_context(_progress("epochs", console))
        stack.enter_context(_many_graphs())
        rates = time_cases(cases, settings.repetitions, device, progress)
    store_bytes = {name: bench.store(name, LOGITS).bytes_per_sample() * settings.samples for name in settings.teachers}
    return rates, store_bytes


def _points(settings: BenchSettings, device: torch.device, folder: Path, console: Console) -> list[Point]:
    points = []
    for name, label in LABELS.items():
        with _progress(f"sweep: {label}", console) as progress:
            points += sweep(name, settings, device, folder, progress)
    return points


def _peaks(settings: BenchSettings, console: Console) -> list[Peak]:
    with _progress("memory", console) as progress:
        peaks = []
        for key in CASES:
            peaks.append(peak_memory(key, settings))
            progress(len(peaks), len(CASES))
    return peaks


@contextmanager
def _progress(what: str, console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is drawn between measurements only; a moving bar would take time from them."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, refresh=True)


def _environment(device: torch.device, peers: bool) -> dict[str, Any]:
    """Hardware and versions, including torchdistill's if it was timed."""
    facts = environment(device)
    if peers and torchdistill_installed():
        facts["versions"] |= {"torchdistill": version("torchdistill")}
    return facts


def _many_graphs() -> AbstractContextManager[None]:
    """All cases share the code of one training step: allow a graph for each, and fail instead of running eagerly."""
    return torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True)


def _compiles(device: torch.device, console: Console) -> bool:
    """Whether torch.compile works here. Prints a message if it does not."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # a compiler can fail with any error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        _say(console, f"warning: torch.compile does not work here ({reason}); our steps run eagerly")
        return False
    return True


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _make_folder(folder: Path | None) -> None:
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"no folder for the results at {folder}: {error.strerror}; give another output") from None
