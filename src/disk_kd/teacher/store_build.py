"""Building a teacher store view by view, together with other processes, and resuming stopped builds.

Shape letters: N samples, B batch, T temperatures.
"""

from __future__ import annotations

import copy
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from disk_kd.errors import ConfigError, DataError, ModelError, RunError
from disk_kd.support import sample_name
from disk_kd.teacher.encoding import TEMPERATURES, Encoding, Plain, encoding_of, kl_of_storing, unusable
from disk_kd.teacher.frozen import Teacher
from disk_kd.teacher.manifest import agreed_record, changed_manifest, refuse_difference
from disk_kd.teacher.store_files import map_file, missing_outputs, output_file, part_file, rows_of, write_blank

Progress = Callable[[int, int], None]

_ERRORS = "errors"
"""File with the storing errors of each sample; it exists until the view is complete."""

_ERROR_ROWS = Plain((len(TEMPERATURES),), torch.float32)
_SAVE_EVERY_S = 30.0


class Batches(Protocol):
    """The batches that a store is built from: a `disk_kd.data.Loader` with shuffle=False and drop_last=False."""

    batch_size: int
    steps_per_epoch: int

    @property
    def split(self) -> Any:
        """The split; its `ids` (N,) are read."""

    def batches(self, epoch: int, start: int = 0) -> Iterable[Any]:
        """Batches (images, targets, ids, view) of an epoch from step `start`. Epoch v has the augmentation of view v"""


class _Part(NamedTuple):
    """An unfinished file: its encoding, the mapped file, and its rows."""

    encoding: Encoding
    file: np.memmap
    rows: np.ndarray


def build_missing(
    path: Path, teacher: Teacher, loader: Batches, facts: dict[str, Any], views: int, progress: Progress | None
) -> None:
    """Compute what the folder lacks of the teacher's `needs` under views 0 to `views` - 1, or wait for other processes.

    The process that holds a view's lock builds it.

    Raises:
        As `TeacherStore.build`.
    """
    order_N = _checked_order(loader, facts["samples"])
    # First what is free; then what others had, after a wait as long as it takes: they may have left it unfinished.
    for patience_s in (0, -1):
        for view in range(views):
            if not missing_outputs(path, teacher.needs, view):
                continue
            with suppress(Timeout), FileLock(path / f"view{view}.lock", timeout=patience_s):
                asked = copy.copy(teacher)
                asked.needs = frozenset(missing_outputs(path, teacher.needs, view))
                if asked.needs:
                    whole = sum(not missing_outputs(path, teacher.needs, other) for other in range(views))
                    _ViewBuild(path, asked, facts, view).run(loader, order_N, whole, views, progress)


class _ViewBuild:
    """The build of the outputs of one view. Its lock is held.

    Args:
        path: the store's folder.
        teacher: its `needs` are the missing outputs of the view.
        facts: facts that the manifest must hold. Shapes, errors and times are added to it.
        view: number of the view.
    """

    def __init__(self, path: Path, teacher: Teacher, facts: dict[str, Any], view: int) -> None:
        self.path, self.teacher, self.view, self.needs = path, teacher, view, sorted(teacher.needs)
        self.split: Any = None
        self.record = agreed_record(path, facts)
        self.names = self.needs + [_ERRORS] * ("logits" in self.needs)
        for leftover in path.glob(f"*.view{view}.npy.part.*.tmp"):  # of a process that was killed while it wrote one
            leftover.unlink()
        begun = [name for name in self.names if part_file(path, name, view).exists()]
        self.parts = {name: self._open(name) for name in begun}
        self.saved_at = time.monotonic()

    def run(self, loader: Batches, order_N: np.ndarray, whole: int, views: int, progress: Progress | None) -> None:
        """Fill all files from the first step without data, then give them their final names.

        Progress counts the steps of all `views`; the steps of the `whole` views count as finished.
        """
        size, steps, self.split = loader.batch_size, loader.steps_per_epoch, loader.split
        start = self._first_unwritten(order_N, size)
        try:
            for step, batch in enumerate(loader.batches(self.view, start=start), start):
                rows_B = batch.ids.cpu().numpy()
                _check_batch(batch.view, self.view, rows_B, order_N[step * size : (step + 1) * size], step)
                self._write(self.teacher(batch.images), rows_B)
                if time.monotonic() > self.saved_at + _SAVE_EVERY_S:
                    self._save()
                if progress is not None:
                    progress(whole * steps + step + 1, views * steps)
        finally:
            self._save()
        self._finish(order_N)

    def _first_unwritten(self, order_N: np.ndarray, batch_size: int) -> int:
        """The first step of the epoch with a NaN row in some file."""
        if len(self.parts) < len(self.names):
            return 0
        for first in range(0, len(order_N), batch_size):
            rows_B = order_N[first : first + batch_size]
            if any(part.encoding.decode(_take(part, rows_B)).isnan().any() for part in self.parts.values()):
                return first // batch_size
        return -(-len(order_N) // batch_size)

    def _write(self, outputs: Mapping[str, Tensor], rows_B: np.ndarray) -> None:
        """Write the outputs of a batch to their rows, and the errors of storing them."""
        if len(self.parts) < len(self.names):
            self._lay_out(outputs)
        for need in self.needs:
            part, output = self.parts[need], outputs[need]
            _check_usable(need, output, rows_B, self.split)
            encoded = part.encoding.encode(output)
            stored = part.encoding.decode(encoded)
            part.rows[rows_B] = encoded.cpu().numpy()
            if need == "logits":
                self.parts[_ERRORS].rows[rows_B] = kl_of_storing(output, stored).cpu().numpy()

    def _lay_out(self, outputs: Mapping[str, Tensor]) -> None:
        """Write the shapes to the manifest, then create the missing files, blank."""
        facts = self.record["facts"]
        shapes = {need: list(outputs[need].shape[1:]) for need in self.needs}
        encodings = {need: encoding_of(need, shape, facts["top_k"], facts["dtype"]) for need, shape in shapes.items()}
        new = {name: encodings.get(name, _ERROR_ROWS) for name in self.names if name not in self.parts}
        try:
            with changed_manifest(self.path, facts) as self.record:
                known = self.record["shapes"]
                refuse_difference(self.path, known, shapes, known.keys() & shapes.keys())
                known.update(shapes)
            for name, encoding in new.items():
                write_blank(part_file(self.path, name, self.view), encoding, facts["samples"])
        except OSError as error:
            needed_mib = facts["samples"] * sum(encoding.item.itemsize for encoding in new.values()) / 2**20
            raise RunError(
                f"cannot write view {self.view} of the teacher store {self.path}, {needed_mib:.0f} MiB: "
                f"{error.strerror}; make room or give another path"
            ) from None
        self.parts |= {name: self._open(name) for name in new}

    def _open(self, name: str) -> _Part:
        facts, shapes = self.record["facts"], self.record["shapes"]
        encoding = _ERROR_ROWS if name == _ERRORS else encoding_of(name, shapes[name], facts["top_k"], facts["dtype"])
        file = map_file(part_file(self.path, name, self.view), encoding, facts["samples"], "r+")
        return _Part(encoding, file, rows_of(file))

    def _save(self) -> None:
        """Wait until all data is on the disk, and record the time."""
        if not self.parts:
            return
        for part in self.parts.values():
            part.file.flush()
        with changed_manifest(self.path, self.record["facts"]) as self.record:
            about = self.record["views"].setdefault(str(self.view), {"build_s": 0.0})
            now = time.monotonic()
            about["build_s"] += now - self.saved_at
            about["by"] = f"{platform.node()}:{os.getpid()}"
            self.saved_at = now

    def _finish(self, order_N: np.ndarray) -> None:
        """Record the errors, then rename the files. A build that stops in between finds them complete, or restarts
        them.
        """
        if _ERRORS in self.parts:
            with changed_manifest(self.path, self.record["facts"]) as self.record:
                self.record["views"][str(self.view)]["errors"] = _summary(self.parts[_ERRORS].rows[order_N])
            part_file(self.path, _ERRORS, self.view).unlink()  # first, because complete views are not read again
        for need in self.needs:
            part_file(self.path, need, self.view).replace(output_file(self.path, need, self.view))


def _take(part: _Part, rows_B: np.ndarray) -> Tensor:
    return torch.from_numpy(part.rows.take(rows_B, axis=0))


def _summary(errors_NT: np.ndarray) -> dict[str, dict[str, float]]:
    """Mean and maximum of the errors of the samples by temperature, in nats."""
    mean_T, max_T = errors_NT.mean(0, dtype=np.float64), errors_NT.max(0)
    return {
        f"{temperature:g}": {"mean": float(mean), "max": float(greatest)}
        for temperature, mean, greatest in zip(TEMPERATURES, mean_T, max_T, strict=True)
    }


def _checked_order(loader: Batches, samples: int) -> np.ndarray:
    """The ids of the split's samples, in the order that an epoch must have."""
    order_N = loader.split.ids.cpu().numpy()
    if not len(order_N):
        raise DataError("there are no samples to store a teacher's outputs for; give a split that is not empty")
    if order_N.max() >= samples:
        raise DataError(f"sample id {order_N.max()} has no row in a teacher store of {samples} samples")
    if loader.steps_per_epoch * loader.batch_size < len(order_N):
        raise ConfigError("the loader leaves out the last samples of an epoch; a teacher store needs drop_last=False")
    return order_N


def _check_batch(view: int, expected: int, rows_B: np.ndarray, expected_B: np.ndarray, step: int) -> None:
    if view != expected:
        raise ConfigError(f"epoch {expected} of the loader has view {view}; give it as many views as the store")
    if not np.array_equal(rows_B, expected_B):
        raise ConfigError(f"step {step} of the loader is not in the split's order; a teacher store needs shuffle=False")


def _check_usable(need: str, output: Tensor, rows_B: np.ndarray, split: Any) -> None:
    """Raise an error for NaN, which marks unwritten rows, and for infinity, which would be stored as a number."""
    bad_B = unusable(need, output).cpu().numpy()
    if bad_B.any():
        raise ModelError(
            f"the teacher's {need} are not finite for {sample_name(split, int(rows_B[bad_B][0]))}; check its weights,"
            " or give --teacher.precision fp32"
        )
