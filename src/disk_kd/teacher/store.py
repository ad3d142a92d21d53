"""Stored outputs of a teacher: computed once, read by every run, pass and rank.

Shape letters: V views, N samples, B batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from disk_kd.errors import CheckpointError, ConfigError, DataError, ModelError, RunError
from disk_kd.teacher.frozen import Teacher
from disk_kd.teacher.manifest import (
    FORMAT,
    MANIFEST,
    as_json,
    damaged,
    read_manifest,
    refuse_difference,
    teacher_facts,
    write_manifest,
)

HALF = np.dtype("<f2")
HALF_MAX = 65504.0
"""Largest number of half precision."""

_NOT_FACTS = {"shapes", "views_finished"}
_BLANK_ROWS = 1024


class Batches(Protocol):
    """What a store is built from: `disk_kd.data.Loader` with shuffle=False and drop_last=False."""

    steps_per_pass: int

    def batches(self, pass_index: int) -> Iterable[Any]:
        """Batches (images, targets, ids, view) of a pass; pass v has the augmentation of view v."""


class TeacherStore:
    """A teacher's outputs for every sample under every view, on disk in half precision.

    A folder with one array (V, N, ...) per output, `logits.npy` and so on, mapped into memory, so that the
    runs and ranks of a machine share one copy; and `manifest.json`, which says what they were made from. Row
    n belongs to the sample of id n; a row that was not written reads as NaN.

    Half precision keeps an output to a relative 2^-11 (0.05%), and its magnitude to 65504.

    `build` makes a store, `open` opens one.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], needs: Collection[str]) -> None:
        self.path = path
        self.manifest = manifest
        self._arrays = {need: _open_array(path, need, manifest["shapes"][need], "r") for need in sorted(needs)}
        self._loaded: dict[str, Tensor] = {}

    @classmethod
    def build(
        cls,
        path: str | Path,
        teacher: Teacher,
        loader: Batches,
        *,
        views: int,
        samples: int,
        manifest: Mapping[str, Any],
        progress: Callable[[int, int], None] | None = None,
    ) -> TeacherStore:
        """Run the teacher over every view, or go on where a build was stopped; open a store that is whole.

        Any number of processes may build the same store: one works, the others wait for it. A view counts as
        finished only after its rows are on the disk.

        Args:
            path: a folder; made if it is not there.
            teacher: gives the outputs that its `needs` name.
            loader: meets each sample once a pass, in the augmentation of that view, on the teacher's device.
            views: V.
            samples: N, above the largest sample id.
            manifest: what else the outputs depend on (dataset fingerprint, augmentation, seed, precision), as
                JSON values. `teacher_facts` are added.
            progress: called after each batch with the batches done and the batches in all.

        Raises:
            CheckpointError: the store at `path` was made from something else, or is damaged.
            ConfigError: the loader does not make that many views.
            DataError: there are no samples, or one has an id that is not below `samples`.
            ModelError: the teacher gives NaN.
            RunError: the disk is full or not writable.
        """
        path = Path(path)
        facts = _facts(teacher, views, samples, manifest)
        _make_folder(path)
        with FileLock(path / "lock"):
            if (path / MANIFEST).exists():
                record = read_manifest(path)
                refuse_difference(path, record, facts, (record.keys() | facts.keys()) - _NOT_FACTS)
            else:
                record = _create(path, teacher, loader, facts)
            arrays = {need: _open_array(path, need, shape, "r+") for need, shape in record["shapes"].items()}
            for view in range(record["views_finished"], views):
                _write_view(arrays, teacher, loader, view, progress)
                record["views_finished"] = view + 1
                write_manifest(path, record)
        return cls.open(path)

    @classmethod
    def open(
        cls,
        path: str | Path,
        manifest: Mapping[str, Any] | None = None,
        needs: Collection[str] | None = None,
    ) -> TeacherStore:
        """Open a finished store.

        Args:
            path: its folder.
            manifest: facts that it must have been made from: any of those in the manifest, such as what was
                given to `build`, and `teacher_facts`.
            needs: outputs to read; None: all that are stored.

        Raises:
            CheckpointError: there is no store, it is unfinished or damaged, it was made from something else,
                or it lacks an output.
        """
        path = Path(path)
        record = read_manifest(path)
        wanted = as_json(manifest or {})
        refuse_difference(path, record, wanted, wanted.keys())
        if record["views_finished"] < record["views"]:
            raise CheckpointError(
                f"teacher store {path} has {record['views_finished']} of {record['views']} views; "
                "build it again to go on"
            )
        needs = record["needs"] if needs is None else needs
        missing = sorted(set(needs) - set(record["needs"]))
        if missing:
            raise CheckpointError(
                f"teacher store {path} holds {', '.join(record['needs'])} and not {', '.join(missing)}, "
                "which this method needs; delete it or give another path"
            )
        return cls(path, record, needs)

    def read(self, ids_B: Tensor, view: int, device: torch.device | str) -> dict[str, Tensor]:
        """The outputs for some samples under one view.

        Ids on an accelerator cost a wait for it, unless `preload` has put the store there.

        Args:
            ids_B: (B,) sample ids.
            view: 0 to V - 1.
            device: where the outputs go.

        Returns:
            By name, float32 tensors (B, ...) on the device.

        Raises:
            CheckpointError: there is no such view.
        """
        views = self.manifest["views"]
        if not 0 <= view < views:
            raise CheckpointError(
                f"teacher store {self.path} has views 0 to {views - 1}, the data asks for view {view}; "
                "give the data as many views, or store more"
            )
        if self._loaded:
            return {
                need: array[view, ids_B.to(array.device, non_blocking=True)].to(device).float()
                for need, array in self._loaded.items()
            }
        rows_B = ids_B.cpu().numpy()
        return {
            need: torch.from_numpy(np.asarray(array[view, rows_B])).to(device, non_blocking=True).float()
            for need, array in self._arrays.items()
        }

    def preload(self, device: torch.device | str, max_bytes: int = 2 << 30) -> bool:
        """Copy the store to a device, so that reading it costs no transfer and no wait.

        Args:
            device: where to.
            max_bytes: leave it on disk if it is larger.

        Returns:
            Whether it was copied.
        """
        if sum(array.nbytes for array in self._arrays.values()) > max_bytes:
            return False
        for need, array in self._arrays.items():
            copy = torch.empty(array.shape, dtype=torch.float16, device=device)
            for view, rows in enumerate(array):
                # One view at a time, and a copy of it, because torch takes no read-only arrays.
                copy[view] = torch.from_numpy(np.array(rows))
            self._loaded[need] = copy
        return True

    def bytes_per_sample(self) -> int:
        """Bytes on disk of one sample under one view, of the outputs that are read."""
        return sum(HALF.itemsize * math.prod(array.shape[2:]) for array in self._arrays.values())


def store_bytes(samples: int, views: int, num_classes: int, pooled: int = 0, map_size: int = 0) -> int:
    """Bytes of a store on disk, but for some hundred bytes of headers.

    Args:
        samples: N.
        views: V.
        num_classes: numbers in the logits of an image; 0 when they are not stored.
        pooled: numbers in its pooled features; 0 when they are not stored.
        map_size: numbers in its map, channels x height x width; 0 when it is not stored.
    """
    return HALF.itemsize * samples * views * (num_classes + pooled + map_size)


def _facts(teacher: Teacher, views: int, samples: int, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides what a store holds."""
    layout = {"format": FORMAT, "dtype": "float16", "views": views, "samples": samples}
    return as_json({**manifest, **teacher_facts(teacher), **layout, "needs": sorted(teacher.needs)})


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"no folder for a teacher store at {path}: {error.strerror}; give another") from None


def _create(path: Path, teacher: Teacher, loader: Batches, facts: dict[str, Any]) -> dict[str, Any]:
    """Lay out blank arrays, then the manifest of a store with no view finished."""
    first = next(iter(loader.batches(0)), None)
    if first is None:
        raise DataError("there are no samples to store a teacher's outputs for; give a split that is not empty")
    layout = facts["views"], facts["samples"]
    shapes = {need: (*layout, *output.shape[1:]) for need, output in teacher(first.images).items()}
    try:
        for need, shape in shapes.items():
            _write_blank(path / f"{need}.npy", shape)
    except OSError as error:
        for need in shapes:
            (path / f"{need}.npy").unlink(missing_ok=True)
        needed_mib = HALF.itemsize * sum(map(math.prod, shapes.values())) / 2**20
        raise RunError(
            f"cannot write the teacher store {path} of {needed_mib:.0f} MiB: {error.strerror}; "
            "make room or give another path"
        ) from None
    record = {**facts, "shapes": shapes, "views_finished": 0}
    write_manifest(path, record)
    return record


def _write_blank(path: Path, shape: tuple[int, ...]) -> None:
    """An array of NaN, written out: a full disk must show here, since under a mapped file it kills the process."""
    blank = np.full((_BLANK_ROWS, *shape[2:]), np.nan, HALF)
    rows = shape[0] * shape[1]
    with path.open("wb") as file:
        header = {"descr": HALF.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, _BLANK_ROWS):
            file.write(blank[: rows - start].tobytes())


def _write_view(
    arrays: dict[str, np.memmap],
    teacher: Teacher,
    loader: Batches,
    view: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fill one view of every array, and wait until it is on the disk."""
    views, samples = next(iter(arrays.values())).shape[:2]
    for step, batch in enumerate(loader.batches(view)):
        if batch.view != view:
            raise ConfigError(
                f"pass {view} of the loader has view {batch.view}: it must make the store's {views} views"
            )
        outputs, rows_B = teacher(batch.images), batch.ids.cpu().numpy()
        if rows_B.max() >= samples:
            raise DataError(f"sample id {rows_B.max()} has no row in a teacher store of {samples} samples")
        for need, array in arrays.items():
            array[view, rows_B] = _half(outputs[need], need, rows_B)
        if progress is not None:
            progress(view * loader.steps_per_pass + step + 1, views * loader.steps_per_pass)
    for array in arrays.values():
        array.flush()


def _half(output: Tensor, need: str, rows_B: np.ndarray) -> np.ndarray:
    """An output in half precision on the host; NaN is refused, since it marks what was not written."""
    half = output.clamp(-HALF_MAX, HALF_MAX).half().cpu().numpy()
    bad_B = np.isnan(half).reshape(len(half), -1).any(axis=1)
    if bad_B.any():
        raise ModelError(f"the teacher's {need} are NaN for sample {rows_B[bad_B][0]}; check its weights and precision")
    return half


def _open_array(path: Path, need: str, shape: list[int], mode: Literal["r", "r+"]) -> np.memmap:
    file = path / f"{need}.npy"
    try:
        array = np.lib.format.open_memmap(file, mode=mode)
    except (OSError, ValueError) as error:
        raise damaged(path, f"{file.name}: {error}") from None
    if array.dtype != HALF or list(array.shape) != list(shape):
        raise damaged(path, f"{file.name} holds {array.dtype} {list(array.shape)}, not float16 {list(shape)}")
    return array
