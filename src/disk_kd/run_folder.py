"""The run directory: its lock, and what a resumed run must have in common with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from disk_kd import ranks
from disk_kd.config import RunConfig
from disk_kd.data import Dataset
from disk_kd.data.settings import DataSettings
from disk_kd.errors import DataError, DiskKDError, RunError
from disk_kd.files import read_yaml, remove_leftovers, write_text
from disk_kd.options import dotted
from disk_kd.recipe import CONFIG
from disk_kd.tasks import StudentTask
from disk_kd.training import CHECKPOINT

DATA = "data.json"
"""File with the fingerprints of the images at the start of the run."""
LOCK = Path("last") / "lock"


class BusyError(RunError):
    """Another process works in this run directory."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock the run directory, so that no second process writes there."""
    if not ranks.is_main():
        yield
        return
    try:
        with FileLock(folder / LOCK, timeout=0):
            for path in (folder, folder / "best", folder / "last"):
                remove_leftovers(path)
            yield
    except Timeout:
        raise BusyError(f"another process works in {folder}; wait for it, or give another --output") from None


def check_folder(config: RunConfig) -> RunConfig:
    """Check that a new run has a new folder, and a resumed run a folder with the same configuration.

    Returns:
        The configuration with the decisions of an earlier start of the run.
    """
    folder = config.output
    if not folder.exists():
        return config
    if not folder.is_dir():
        raise RunError(f"the output {folder} is not a folder; give another --output")
    # A run that died while it created its folder left no data to keep.
    if not any(path.is_file() and path.name != "lock" and path.suffix != ".tmp" for path in folder.rglob("*")):
        return config
    if not config.resume:
        raise RunError(f"the run directory {folder} exists; resume it with --resume, or give another --output")
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder} is not a run directory (it has no {CONFIG}); give another --output")
    begun = RunConfig.read(folder)
    before = dotted(begun.to_tree())
    config = config.decided({name: before[name] for name in config.undecided if name in before})
    config = replace(config, shares_views=False)  # a run goes on with the images that it began with
    if differing := sorted(name for name, value in config.identity.items() if begun.identity.get(name, value) != value):
        raise RunError(
            f"{folder} was started with another {', '.join(differing)}; resume it unchanged, or give another --output"
        )
    return config


def write_beginning(config: RunConfig, dataset: Dataset) -> None:
    """Write the configuration and the fingerprints of the images. Runs started by version 0.1 have no fingerprints."""
    folder = config.output
    write_text(folder / CONFIG, config.to_yaml())
    if (folder / DATA).exists() or not (folder / CHECKPOINT).exists():
        write_text(folder / DATA, json.dumps(_fingerprints(dataset)) + "\n")


def _fingerprints(dataset: Dataset) -> dict[str, str]:
    splits = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
    return {name: split.fingerprint() for name, split in splits.items() if split is not None}


def check_reused(folder: Path, data: DataSettings, load: Callable[[DataSettings], Dataset], console: Console) -> None:
    """Refuse to reuse a finished run if the images have changed. Missing images are not compared.

    Raises:
        DataError: the images have changed.
    """
    if not (folder / DATA).exists():  # of an earlier version
        return
    try:
        dataset = load(data)
    except (DiskKDError, OSError) as error:
        console.print(f"{folder} is reused, its images were not compared: {error}", markup=False, soft_wrap=True)
        return
    check_same_images(folder, dataset)


def check_same_images(folder: Path, dataset: Dataset) -> None:
    """Refuse to resume a run if the images have changed since its start, if it recorded them.

    Raises:
        DataError: the images have changed.
    """
    if not (folder / DATA).exists():
        return
    begun, now = read_yaml(folder / DATA), _fingerprints(dataset)
    changed = [name for name in now if not isinstance(begun, dict) or begun.get(name) != now[name]]
    if changed:
        raise DataError(
            f"the {' and '.join(changed)} images changed since {folder} was started; restore them, or start again in"
            " another --output (compare: another --runs)"
        )


def lay_out(folder: Path, task: StudentTask) -> None:
    """Create the run directory, if its disk has room for a checkpoint, its successor and the best and final weights."""
    held = sum(t.numel() * t.element_size() for name, t in task.state_dict().items() if not name.startswith("teacher."))
    needed = 8 * held + 2**24
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        sizes = f"{free / 2**20:.0f} MiB free, the run needs {needed / 2**20:.0f} MiB"
        raise RunError(f"{place} has {sizes}; make room or give another --output")
    try:
        for path in (folder, folder / "best", folder / "last"):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run directory {folder} ({error.strerror}); give another --output") from None
