"""Stored outputs of a teacher. They are computed once and read by all runs, epochs and ranks.

Shape letters: N samples, B batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disk_kd.errors import CheckpointError, RunError
from disk_kd.teacher.encoding import SHIFTED, TEMPERATURES, encoding_of
from disk_kd.teacher.frozen import Teacher
from disk_kd.teacher.manifest import (
    MANIFEST,
    agreed_record,
    as_json,
    read_manifest,
    refuse_difference,
    teacher_facts,
)
from disk_kd.teacher.store_build import Batches, Progress, build_missing
from disk_kd.teacher.store_files import map_file, missing_outputs, output_file, rows_of

_FIRST_VIEW = ".view0.npy"


class TeacherStore:
    """A teacher's outputs for every sample and view, on disk in half precision.

    A folder holds one array (N, ...) for each output and view (`logits.view0.npy` and so on) and `manifest.json`, which
    records what they were made from. The arrays are memory-mapped, so the runs and ranks of a machine share one copy.
    Row n belongs to the sample with id n; rows without a sample read as NaN. Runs that need more outputs or views of
    the same teacher and data add files to the folder.

    Half precision has a relative error of at most 2^-11 (0.05 %) and a largest value of 65504. Logits are stored as
    differences from the largest logit of their row (`disk_kd.teacher.encoding.Shifted`). With many classes, the K
    largest logits and the sum of the others can be stored instead (`disk_kd.teacher.encoding.TopK`). `errors` states
    how much this changes the teacher's distribution, as measured while the store was built.

    `build` makes a store, `open` opens one.

    Attributes:
        path: the folder.
        needs: the outputs that can be read.
        views: number of views that can be read, from view 0.
        manifest: see `disk_kd.teacher.manifest`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], needs: Iterable[str], views: int) -> None:
        self.path, self.manifest, self.needs, self.views = path, manifest, tuple(sorted(needs)), views
        facts, shapes = manifest["facts"], manifest["shapes"]
        self._encodings = {need: encoding_of(need, shapes[need], facts["top_k"], facts["dtype"]) for need in self.needs}
        for view in range(views):  # what is damaged shows now
            self._map(view)
        self._mapped: dict[int, dict[str, np.ndarray]] = {}
        self._loaded: dict[str, list[Tensor]] = {}

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
        top_k: int | None = None,
        progress: Progress | None = None,
    ) -> TeacherStore:
        """Compute what is missing in the folder, resume an unfinished build, and open the store.

        Several processes can build the same store. They share the views, and each returns when all views are complete.
        A file gets its name when all its rows are on the disk; an unfinished file is continued from its first step
        without data. One run of the teacher over the data computes all missing outputs of a view.

        Args:
            path: a folder; it is created if needed.
            teacher: computes the outputs in its `needs`.
            loader: gives the samples of its split in their order, with the view's augmentation, on the teacher's
                device.
            views: number of views to build, from view 0.
            samples: N, larger than the largest sample id.
            manifest: what else the outputs depend on (dataset fingerprint, augmentation, seed, precision), as JSON
                values. `teacher_facts` are added.
            top_k: store this many logits of each sample and the sum of the others; None: all logits.
            progress: called after each batch of this process with the number of finished batches and of all batches.
                The finished batches are those of this view and of all views that were complete at its start.

        Raises:
            CheckpointError: the store at `path` was made from something else, or is damaged.
            ConfigError: the loader shuffles or has another number of views, or `top_k` does not fit the classes.
            DataError: there are no samples, or an id is not below `samples`.
            ModelError: the teacher gives NaN or infinity.
            RunError: the disk is full or not writable.
        """
        path = Path(path)
        layout = {"dtype": SHIFTED, "samples": samples, "top_k": top_k}
        facts = as_json({**manifest, **teacher_facts(teacher), **layout})
        agreed_record(path, facts)
        # A whole store is read without a lock, which a reader may not be allowed to take.
        if not cls.holds(path, teacher.needs, views):
            _make_folder(path)
            build_missing(path, teacher, loader, facts, views, progress)
            agreed_record(path, facts)  # of another process that started the store meanwhile
        return cls.open(path, views=views, needs=teacher.needs)

    @classmethod
    def open(
        cls,
        path: str | Path,
        manifest: Mapping[str, Any] | None = None,
        *,
        views: int | None = None,
        needs: Collection[str] | None = None,
    ) -> TeacherStore:
        """Open an existing store.

        Args:
            path: the store's folder.
            manifest: facts that the store must have been made from, such as the `manifest` given to `build`, and
                `teacher_facts`.
            views: number of views to read; None: all complete views.
            needs: outputs to read; None: all outputs whose first view is complete.

        Raises:
            CheckpointError: there is no store, it is damaged, it was made from something else, or it lacks an output or
                a view.
        """
        path = Path(path)
        # Files first: the manifest has the entry of a view before its files have their names.
        stored = sorted(file.name.removesuffix(_FIRST_VIEW) for file in path.glob(f"*{_FIRST_VIEW}"))
        needs = stored if needs is None else sorted(needs)
        whole = _whole_views(path, needs)
        record = read_manifest(path)
        wanted = as_json(manifest or {})
        refuse_difference(path, record["facts"], wanted, wanted.keys())
        lacking = [need for need in needs if need not in stored]
        if lacking or not needs:
            raise CheckpointError(
                f"teacher store {path} holds {', '.join(stored) or 'no finished view'} and not "
                f"{', '.join(lacking) or 'an output'}, which this run needs; build it again to go on"
            )
        if views is not None and whole < views:
            raise CheckpointError(
                f"teacher store {path} has {whole} of {views} views of {', '.join(needs)}; build it again to go on"
            )
        return cls(path, record, needs, whole if views is None else views)

    @classmethod
    def missing(cls, path: str | Path, needs: Collection[str], views: int) -> int:
        """Number of files (one per output and view) that a build would have to create."""
        path = Path(path)
        if not (path / MANIFEST).exists():
            return len(needs) * views
        return sum(len(missing_outputs(path, needs, view)) for view in range(views))

    @classmethod
    def holds(cls, path: str | Path, needs: Collection[str], views: int) -> bool:
        """Whether all files for these outputs and views exist. What they were made from is not checked."""
        return cls.missing(path, needs, views) == 0

    @property
    def members(self) -> tuple[TeacherStore, ...]:
        """The stores on disk that this one reads: itself."""
        return (self,)

    def read(self, ids_B: Tensor, view: int, device: torch.device | str) -> dict[str, Tensor]:
        """The outputs for some samples under one view.

        With ids on an accelerator the host waits for it, unless `preload` has copied the store there.

        Args:
            ids_B: (B,) sample ids.
            view: from 0 to `views` - 1.
            device: device of the result.

        Returns:
            float32 tensors (B, ...) on the device, by output name.

        Raises:
            CheckpointError: there is no such view.
        """
        if not 0 <= view < self.views:
            raise CheckpointError(
                f"teacher store {self.path} has views 0 to {self.views - 1}, the data asks for view {view}; "
                "give the data as many views, or store more"
            )
        if self._loaded:
            rows = {need: _select(by_view[view], ids_B) for need, by_view in self._loaded.items()}
        else:
            index_B = ids_B.cpu().numpy()
            if view not in self._mapped:
                # Epochs read view by view: one at a time is enough, and open files are few.
                self._mapped = {view: self._map(view)}
            mapped = self._mapped[view]
            rows = {need: torch.from_numpy(array.take(index_B, axis=0)) for need, array in mapped.items()}
        return {need: self._encodings[need].decode(part.to(device, non_blocking=True)) for need, part in rows.items()}

    def preload(self, device: torch.device | str, max_bytes: int = 2 << 30) -> bool:
        """Copy the store to an accelerator, so that reading it needs no transfer and no wait.

        On a CPU nothing is done: files stay in shared memory after the first read.

        Args:
            device: target device.
            max_bytes: do not copy if the store is larger.

        Returns:
            Whether it was copied.
        """
        total_bytes = self.views * self.manifest["facts"]["samples"] * self.bytes_per_sample()
        if torch.device(device).type == "cpu" or total_bytes > max_bytes:
            return False
        self._load(device)
        return True

    def _load(self, device: torch.device | str) -> None:
        for view in range(self.views):
            for need, rows in self._map(view).items():
                # A copy, because torch takes no read-only arrays.
                self._loaded.setdefault(need, []).append(torch.from_numpy(np.array(rows)).to(device))

    def _map(self, view: int) -> dict[str, np.ndarray]:
        """The memory-mapped files of a view.

        Raises:
            CheckpointError: one is damaged.
        """
        samples = self.manifest["facts"]["samples"]
        return {
            need: rows_of(map_file(output_file(self.path, need, view), encoding, samples))
            for need, encoding in self._encodings.items()
        }

    def errors(self) -> dict[str, dict[str, float]]:
        """Change of the logits by storing: KL(softmax(teacher / T) || softmax(stored / T)) in nats.

        Returns:
            By temperature T ("1", "2", "4"), "mean" and "max" over the samples and views that are read; empty
            where the logits are not.
        """
        if "logits" not in self.needs:
            return {}
        errors = [self.manifest["views"][str(view)]["errors"] for view in range(self.views)]
        return {
            f"{t:g}": {
                "mean": sum(error[f"{t:g}"]["mean"] for error in errors) / self.views,
                "max": max(error[f"{t:g}"]["max"] for error in errors),
            }
            for t in TEMPERATURES
        }

    def build_s(self) -> float:
        """Seconds that building the readable views took, including data loading and all outputs."""
        return sum(self.manifest["views"][str(view)]["build_s"] for view in range(self.views))

    def bytes_per_sample(self) -> int:
        """Bytes on disk of one sample under one view, for the readable outputs."""
        return sum(encoding.item.itemsize for encoding in self._encodings.values())


def store_bytes(
    samples: int, views: int, num_classes: int, pooled: int = 0, map_size: int = 0, top_k: int | None = None
) -> int:
    """Bytes of a store on disk, without the header of some hundred bytes in each file.

    Args:
        samples: N.
        views: how many views.
        num_classes: numbers in the logits of an image; 0 if they are not stored.
        pooled: numbers in its pooled features; 0 if they are not stored.
        map_size: numbers in its map, channels x height x width; 0 if it is not stored.
        top_k: number of stored logits; None: all.

    Raises:
        ConfigError: `top_k` does not fit the classes.
    """
    sizes = {"logits": num_classes, "pooled": pooled, "map": map_size}
    row_bytes = sum(encoding_of(need, (size,), top_k).item.itemsize for need, size in sizes.items() if size)
    return samples * views * row_bytes


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"no folder for a teacher store at {path}: {error.strerror}; give another") from None


def _whole_views(path: Path, needs: Collection[str]) -> int:
    """Number of views, from 0, with a file for every output."""
    return next(view for view in count() if not needs or missing_outputs(path, needs, view))


def _select(rows: Tensor, ids_B: Tensor) -> Tensor:
    return rows.index_select(0, ids_B.to(rows.device, non_blocking=True))
