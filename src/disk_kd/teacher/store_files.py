"""The files of a teacher store: one per output and view, finished (`.npy`) or not (`.npy.part`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from disk_kd.files import replacing
from disk_kd.teacher.encoding import Encoding
from disk_kd.teacher.manifest import damaged

_BLANK_ROWS = 1024


def output_file(folder: Path, name: str, view: int) -> Path:
    """The finished file of an output and view."""
    return folder / f"{name}.view{view}.npy"


def part_file(folder: Path, name: str, view: int) -> Path:
    """The unfinished file of an output and view."""
    return folder / f"{name}.view{view}.npy.part"


def missing_outputs(folder: Path, needs: Iterable[str], view: int) -> list[str]:
    """The outputs in `needs` without a finished file for the view."""
    return [need for need in sorted(needs) if not output_file(folder, need, view).exists()]


def write_blank(file: Path, encoding: Encoding, samples: int) -> None:
    """Write a file of NaN to the disk. A full disk then shows here; under a mapped file it would kill the process.

    Raises:
        OSError: the file cannot be written. Nothing is left of it.
    """
    row = encoding.encode(torch.full((1, *encoding.shape), torch.nan)).numpy().tobytes()
    header = {
        "descr": np.lib.format.dtype_to_descr(encoding.item.base),
        "fortran_order": False,
        "shape": (samples, *encoding.item.shape),
    }
    with replacing(file) as temporary, temporary.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, samples, _BLANK_ROWS):
            out.write(row * min(_BLANK_ROWS, samples - start))


def map_file(file: Path, encoding: Encoding, samples: int, mode: Literal["r", "r+"] = "r") -> np.memmap:
    """The memory-mapped file with `samples` rows.

    Raises:
        CheckpointError: the file is missing, or holds something else.
    """
    try:
        array = np.lib.format.open_memmap(file, mode=mode)
    except (OSError, ValueError) as error:
        raise damaged(file.parent, f"{file.name}: {error}") from None
    item, shape = encoding.item.base, (samples, *encoding.item.shape)
    if array.dtype != item or array.shape != shape:
        raise damaged(file.parent, f"{file.name} holds {array.dtype} {list(array.shape)}, not {item} {list(shape)}")
    return array


def rows_of(array: np.memmap) -> np.ndarray:
    """The rows of a mapped file in the form that `Encoding` takes: rows with several fields as bytes.

    The result is a plain array, because indexing a memmap takes several times as long.
    """
    if array.dtype.names is None:
        return np.asarray(array)
    return np.asarray(array.view(np.uint8).reshape(len(array), array.itemsize))
