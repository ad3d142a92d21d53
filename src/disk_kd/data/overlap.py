"""Unlabelled images that are also in a held-out split, found by their bytes.

Only files of equal size are read. Files of a folder or tar so cost about 10 microseconds each.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from disk_kd.data.samples import Samples
from disk_kd.data.settings import Overlap
from disk_kd.errors import DataError


def without_overlap(
    unlabelled: Samples, held_out: Mapping[str, tuple[Samples, Tensor | None]], wanted: Overlap
) -> Samples:
    """The unlabelled samples, checked against the held-out splits.

    Args:
        unlabelled: samples without labels.
        held_out: samples by the name of their split, and the numbers of those that belong to it; None: all.
        wanted: what to do with samples that are in a held-out split too.

    Returns:
        The samples that may be used.

    Raises:
        DataError: a sample is in a held-out split too, and `wanted` is "error".
    """
    if wanted == "keep":
        return unlabelled
    found: dict[int, tuple[str, int]] = {}
    for name, (samples, numbers) in held_out.items():
        for own, other in _same_bytes(unlabelled, samples, numbers).items():
            found.setdefault(own, (name, other))
    if not found:
        return unlabelled
    own, (name, other) = next(iter(found.items()))
    pair = f"{_path(unlabelled, own)} is {_path(held_out[name][0], other)} of the {name} split"
    count = len(unlabelled.targets)
    text = f"{len(found)} of {count} unlabelled images have the bytes of held-out images, such as {pair}"
    if wanted == "error":
        raise DataError(f"{text}; give data.overlap=leave-out to learn without them, or data.overlap=keep")
    warnings.warn(f"{text}; they are left out", stacklevel=2)
    kept = [number for number in range(count) if number not in found]
    if not kept:
        raise DataError(f"all {count} unlabelled images are in held-out splits; give others")
    return _chosen(unlabelled, kept)


def _path(samples: Samples, number: int) -> str:
    return f"image {number}" if samples.paths is None else samples.paths[number]


class _ChosenFiles:
    """Some of the files of a source, numbered anew."""

    def __init__(self, files: Callable[[int], bytes], numbers: list[int]) -> None:
        self.files, self.numbers = files, numbers

    def __call__(self, number: int) -> bytes:
        return self.files(self.numbers[number])

    def stamp(self, number: int) -> str:
        """The stamp of the file in its source."""
        stamp: str = self.files.stamp(self.numbers[number])  # type: ignore[attr-defined]
        return stamp


def _chosen(samples: Samples, numbers: list[int]) -> Samples:
    index = torch.tensor(numbers)
    return replace(
        samples,
        targets=samples.targets[index],
        files=None if samples.files is None else _ChosenFiles(samples.files, numbers),
        paths=None if samples.paths is None else tuple(samples.paths[number] for number in numbers),
        images=None if samples.images is None else samples.images[index],
    )


def _same_bytes(unlabelled: Samples, held_out: Samples, numbers: Tensor | None) -> dict[int, int]:
    """Numbers of unlabelled samples, and of held-out samples with the same bytes."""
    others = range(len(held_out.targets)) if numbers is None else numbers.tolist()
    by_size: dict[int | None, list[int]] = defaultdict(list)
    for other in others:
        by_size[_size(held_out, other)].append(other)
    digests: dict[int | None, dict[bytes, int]] = {}
    found = {}
    for own in range(len(unlabelled.targets)):
        size = _size(unlabelled, own)
        if size not in by_size:
            continue
        if size not in digests:
            digests[size] = {digest: other for other in by_size[size] if (digest := _digest(held_out, other))}
        if (digest := _digest(unlabelled, own)) and digest in digests[size]:
            found[own] = digests[size][digest]
    return found


def _size(samples: Samples, number: int) -> int | None:
    """Bytes of a file; None if the source does not tell it, or the image is in memory."""
    if samples.files is None:
        return None
    try:
        size = samples.files.stamp(number).split()[0]
    except OSError:
        return -1
    return int(size) if size.isdecimal() else None


def _digest(samples: Samples, number: int) -> bytes | None:
    """SHA-256 of a file, or of the pixels of an image in memory; None if the file cannot be read."""
    if samples.images is not None:
        return hashlib.sha256(samples.images[number].numpy().tobytes()).digest()
    assert samples.files is not None
    try:
        return hashlib.sha256(samples.files(number)).digest()
    except OSError:
        return None
