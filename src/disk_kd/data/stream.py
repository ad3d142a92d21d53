"""Image files that are read as they are needed: decoded, augmented by timm, and brought to the device.

A picture is a function of (file, view, seed), so that an epoch can be entered anywhere and stored teacher outputs fit.

Shapes: N samples, n of a batch, C channels, S side in pixels.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Thread
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as MapDataset

from disk_kd import ranks
from disk_kd.data.decode import MEND, Reading, as_array, centre_crop, read_picture
from disk_kd.data.seeds import sample_seeds, seeded
from disk_kd.data.timm_augment import NO_AUGMENT, TimmAugment
from disk_kd.errors import DataError, shown

_AHEAD = 4
"""Batches that each process prepares before they are asked for."""
_NO_SHARED_MEMORY = (
    "the shared memory (/dev/shm) is too small for the images of the processes that decode; enlarge it (docker run "
    "--shm-size=8g), lower data.workers, or give data.workers=0"
)


class Files(Protocol):
    """The files of samples, by number; copied to the processes that decode, and called by several threads."""

    def __call__(self, number: int) -> bytes:
        """A file's content."""

    def stamp(self, number: int) -> str:
        """What changes when the content does, cheap to tell: the size in bytes, and when it was written."""


@dataclass(frozen=True, eq=False, repr=False)
class StreamedSplit:
    """Labelled image files of a split, in the place of a `Split` whose images are in memory.

    Attributes:
        files: of all samples, by their number in the original split.
        targets: int64 (N,).
        class_names: the name of each label, in label order.
        ids: int64 (N,): each sample's number in its original split.
        sources: where each of `files` comes from.
        reading: how files become pixels; it has an image size.
        timm: augmentation of training views; where it is off they are as for evaluation.
        workers: processes that decode; 0: none but this one.
        class_words: what people call each class, where its name is an id; None: nothing else than its name.
    """

    files: Files
    targets: Tensor
    class_names: tuple[str, ...]
    ids: Tensor
    sources: Sequence[str]
    reading: Reading
    timm: TimmAugment = NO_AUGMENT
    workers: int = 0
    class_words: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        return f"StreamedSplit({len(self)} files, {len(self.class_names)} classes)"

    @property
    def shown_names(self) -> tuple[str, ...]:
        """What to call each label to a person, in label order."""
        return tuple(map(shown, self.class_words or self.class_names))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of an image as a batch has it."""
        assert self.reading.image_size is not None
        return 3, self.reading.image_size, self.reading.image_size

    @property
    def device(self) -> torch.device:
        """The host: where batches come from."""
        return torch.device("cpu")

    @property
    def paths(self) -> tuple[str, ...]:
        """Where each sample comes from, for messages and reports."""
        return tuple(self.sources[i] for i in self.ids.tolist())

    def to(self, device: torch.device | str) -> StreamedSplit:
        """Itself: files stay where they are."""
        return self

    def subset(self, indices: Tensor | Sequence[int]) -> StreamedSplit:
        """The samples at `indices` (positions, not ids), which keep their ids."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, targets=self.targets[index], ids=self.ids[index])

    def pictures(self, rows: Tensor) -> Tensor:
        """The images at some positions, as they are without augmentation: uint8 (n, C, S, S).

        Images that cannot be read are black where they may be left out.
        """
        stream = Stream(replace(self.subset(rows), workers=0), train=False, seed=0)
        ((images, at, _),) = stream.groups([torch.arange(len(rows))], 0)
        pictures = torch.zeros(len(rows), *self.shape, dtype=torch.uint8)
        pictures[at] = images if len(at) else pictures[at]
        return pictures

    def fingerprint(self) -> str:
        """SHA-256 over class names, settings, targets, ids, and the files' names, sizes and times of change.

        It asks the file system once for each file, which takes some 10 microseconds on a local disk, and reads none of
        them. Files that are copied keep it if the copy keeps their times (cp -p, rsync -a, tar).

        Raises:
            DataError: a file is not there, and unreadable ones are not left out.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        header: dict[str, Any] = {
            "shape": [len(self), *self.shape],
            "class_names": self.class_names,
            "crop_pct": self.reading.crop_pct,
        }
        if self.reading.grey_bits is not None:  # without it the same as before there was one
            header["grey_bits"] = self.reading.grey_bits
        digest = hashlib.sha256(json.dumps(header).encode())
        for part in (self.targets, self.ids):
            digest.update(part.numpy().tobytes())
        for number in self.ids.tolist():
            # Without the folders above, so that data that was moved is the same.
            name = "/".join(self.sources[number].split("/")[-2:])
            digest.update(f"{name} {self._stamp(number)}\n".encode())
        return digest.hexdigest()

    def _stamp(self, number: int) -> str:
        try:
            return self.files.stamp(number)
        except OSError as error:
            if self.reading.skip_unreadable:
                return "unreadable"
            raise DataError(f"{self.sources[number]} cannot be read: {error.strerror}; {MEND}") from error


class Stream:
    """Batches of a streamed split, prepared by processes that stay alive between epochs.

    Args:
        split: the files.
        train: augment as `split.timm` says.
        stand_in: when training, read the next file in the place of an unreadable one, so that batches keep their size;
            else leave it out.
        seed: of the augmentation.
        pinned: put batches into pinned memory, from which CUDA copies by itself.
    """

    def __init__(
        self, split: StreamedSplit, *, train: bool, stand_in: bool = True, seed: int, pinned: bool = False
    ) -> None:
        self.split = split
        self.repeats = split.timm.repeats if train else 1
        self._items = _Items()
        options: dict[str, Any] = {}
        if split.workers:
            # Else a run of a comparison would start its processes as it was started itself, which takes seconds.
            start = multiprocessing.get_all_start_methods()[0]
            options = {"persistent_workers": train, "prefetch_factor": _AHEAD, "multiprocessing_context": start}
        self._loader = DataLoader(
            _Pictures(split, train, stand_in, seed),
            batch_sampler=self._items,
            num_workers=split.workers,
            collate_fn=_collate,
            worker_init_fn=_begin,
            pin_memory=pinned,
            generator=torch.Generator(),  # it would draw from the global one
            **options,
        )

    def groups(self, batches: Iterable[Tensor], view: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Pixels of each batch, uint8 (n, C, S, S), its rows of the split (n,), and the rows of the files read (n,).

        Args:
            batches: int64 (n,) each: row * repeats + repetition.
            view: of a row's first repetition in units of repetitions.

        Raises:
            DataError: a file cannot be read, or a process that reads them died or finds no shared memory.
        """
        r = self.repeats
        self._items.batches = ([(code // r, view * r + code % r) for code in batch.tolist()] for batch in batches)
        try:
            for images, pairs, messages in self._loader:
                for message in messages:
                    if not self.split.reading.skip_unreadable:
                        raise DataError(f"{message}; {MEND}")
                    warnings.warn(f"left out: {message}", stacklevel=2)
                rows, read = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
                yield images, rows, read
        except RuntimeError as error:
            if _NO_SHARED_MEMORY not in str(error):
                raise
            raise DataError(_NO_SHARED_MEMORY) from None
        except (EOFError, ConnectionError) as error:
            # It died while its pictures were handed over; torch raises when the signal comes, a moment later.
            time.sleep(1)
            raise _died(type(error).__name__) from error


@contextmanager
def workers_watched() -> Iterator[None]:
    """One clear error where a process that decodes dies; torch raises its own wherever this process then is.

    Raises:
        DataError: a process died inside the block.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        said = str(error).splitlines()[0].rstrip(". ")
        raise _died(said) from error


def _died(said: str) -> DataError:
    return DataError(f"a process that decodes images ended ({said}); out of memory? lower data.workers")


class _Items:
    """(row, view) of each sample of the batches that are wanted now."""

    batches: Iterable[list[tuple[int, int]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        yield from self.batches


class _Sample(NamedTuple):
    """A row's pixels, None where there are none, the row whose file they are of, and what was wrong with others."""

    pixels: Tensor | None
    row: int
    read: int
    messages: list[str]


class _Pictures(MapDataset[_Sample]):
    """(row, view) to a sample."""

    def __init__(self, split: StreamedSplit, train: bool, stand_in: bool, seed: int) -> None:
        self.files, self.ids, self.sources, self.reading = split.files, split.ids, split.sources, split.reading
        self.tries = len(self.ids) if train and stand_in and self.reading.skip_unreadable else 1
        self.seed = seed
        self.timm = split.timm if train else NO_AUGMENT
        self.transform: Any = self.timm.transform(split.shape[1]) if self.timm.enabled else None

    def __getitem__(self, item: tuple[int, int]) -> _Sample:
        row, view = item
        messages: list[str] = []
        for read in ((row + further) % len(self.ids) for further in range(self.tries)):
            try:
                picture = read_picture(self.files, self.sources, int(self.ids[read]), self.reading.grey_bits)
            except DataError as error:
                messages.append(str(error))
            else:
                return _Sample(self._pixels(picture, int(self.ids[row]), view), row, read, messages)
        return _Sample(None, row, row, messages)

    def _pixels(self, picture: Image.Image, number: int, view: int) -> Tensor:
        if self.transform is None:
            assert self.reading.image_size is not None
            return torch.from_numpy(as_array(centre_crop(picture, self.reading.image_size, self.reading.crop_pct)))
        with seeded(int(sample_seeds(torch.tensor([number]), view, self.seed))):
            return self.timm.erase(self.transform(picture))


def _collate(samples: list[_Sample]) -> tuple[Tensor, list[tuple[int, int]], list[str]]:
    """Pixels of a batch, row and read of each, and what was wrong with others.

    The pixels are the only tensor, and are put into shared memory here: where there is no room, torch's own thread
    that does it would lose the batch, and the run would wait for it for ever.
    """
    there = [sample.pixels for sample in samples if sample.pixels is not None]
    images = torch.stack(there) if there else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    if get_worker_info() is not None:
        try:
            images.share_memory_()
        except RuntimeError as error:
            raise RuntimeError(_NO_SHARED_MEMORY) from error
    pairs = [(sample.row, sample.read) for sample in samples if sample.pixels is not None]
    return images, pairs, [message for sample in samples for message in sample.messages]


def _begin(worker: int) -> None:
    """Sets up a process that decodes.

    A launcher signals a rank's whole process group: the rank decides, saves and ends, and its workers with it. A rank
    that is killed ends none of them: they watch it.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def usual_workers() -> int:
    """A process for each core that this process may use, less what other ranks of the host use."""
    return max(1, ranks.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
