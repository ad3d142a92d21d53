"""Runs a toy problem and writes its files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from disk_kd.errors import ConfigError, RunError, nearest
from disk_kd.files import write_text
from disk_kd.toy import gaussians, intervals
from disk_kd.toy.pictures import gaussians_figure, intervals_figure, save

_PARTS = {
    "intervals": (intervals.solve, intervals.tables, intervals_figure),
    "gaussians": (gaussians.solve, gaussians.tables, gaussians_figure),
}
DEFAULT_STARTS = {"intervals": 200, "gaussians": 100}
PROBLEMS = tuple(_PARTS)
_LEAST_STARTS = 3


def run_toy(problem: str, *, starts: int | None, seed: int, output: Path | None, console: Console) -> Path:
    """Solve a toy problem, print its tables, and write result.json, surfaces.json, picture.png and picture.svg.

    Args:
        problem: "intervals" or "gaussians".
        starts: number of initial students for each loss, at least 3; None: as in docs/toy.md.
        seed: random seed of the starts, and of the Gaussians' examples and teacher. The same seed gives the same files.
        output: folder to write to; None: runs/toy-PROBLEM.

    Returns:
        The folder.

    Raises:
        ConfigError: no such problem, too few starts, or a seed outside 0 .. 2**63 - 1.
        RunError: the folder cannot be written to.
    """
    if problem not in _PARTS:
        raise ConfigError(f"unknown toy problem {problem!r}; {nearest(problem, PROBLEMS)}")
    starts = DEFAULT_STARTS[problem] if starts is None else starts
    if starts < _LEAST_STARTS:
        raise ConfigError(f"starts must be at least {_LEAST_STARTS}, got {starts}; try {DEFAULT_STARTS[problem]}")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {seed}; try 0")
    folder = Path(f"runs/toy-{problem}") if output is None else output
    _prepare(folder)
    solve, tables, figure = _PARTS[problem]
    with _one_thread():
        solved, surfaces = solve(starts, seed)
    result = {"problem": problem, "starts": starts, "seed": seed, "torch": torch.__version__} | solved
    write_text(folder / "result.json", json.dumps(result, indent=1))
    write_text(folder / "surfaces.json", json.dumps(surfaces))
    save(figure(result, surfaces), folder / "picture")
    for table in tables(result):
        console.print(table)
    return folder


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: the tensors are so small that several threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _prepare(folder: Path) -> None:
    """Create the folder before the work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the folder {folder}: {error.strerror}; give another with --output") from error
    if not os.access(folder, os.W_OK):
        raise RunError(f"cannot write to the folder {folder}; give another with --output")
