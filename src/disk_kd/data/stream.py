"""Streaming: image files are decoded, augmented by timm and copied to the device as they are needed.

An image depends only on its file, view and seed. An epoch can therefore start anywhere, and stored teacher outputs stay
valid.

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
from itertools import repeat
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
from disk_kd.support import UNLABELLED

_AHEAD = 4
"""Number of batches that each worker process prepares ahead."""
_NO_SHARED_MEMORY = (
    "the shared memory (/dev/shm) is too small for the images of the processes that decode; enlarge it (docker run "
    "--shm-size=8g), lower data.workers, or give data.workers=0"
)


class Files(Protocol):
    """The files of samples, by number. They are copied to worker processes and called by several threads."""

    def __call__(self, number: int) -> bytes:
        """The content of a file."""

    def stamp(self, number: int) -> str:
        """Size in bytes and modification time: they change with the content, and are cheap to read."""


@dataclass(frozen=True, eq=False, repr=False)
class StreamedSplit:
    """Image files of a split, for use instead of a `Split`.

    Attributes:
        files: files of all samples, by their number in the original split.
        targets: int64 (N,); -100 for an image without a label.
        class_names: name of each label, in label order.
        ids: int64 (N,): number of each sample in its original split.
        sources: path of each of `files`.
        reading: settings for decoding; it has an image size.
        timm: augmentation of training views; if it is off, they are decoded as for evaluation.
        workers: number of worker processes; 0: decode in this process.
        class_words: display name of each class, if its name is an id; None: the name is displayed.
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

    @property
    def unlabelled(self) -> int:
        """Number of images without a label."""
        return int((self.targets == UNLABELLED).sum())

    def __repr__(self) -> str:
        return f"StreamedSplit({len(self)} files, {len(self.class_names)} classes)"

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The display name of each label, in label order."""
        return tuple(map(shown, self.class_words or self.class_names))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image in a batch."""
        assert self.reading.image_size is not None
        return 3, self.reading.image_size, self.reading.image_size

    @property
    def device(self) -> torch.device:
        """The host, where batches come from."""
        return torch.device("cpu")

    @property
    def paths(self) -> tuple[str, ...]:
        """The path of each sample, for messages and reports."""
        return tuple(self.sources[i] for i in self.ids.tolist())

    def to(self, device: torch.device | str) -> StreamedSplit:
        """The split itself, because files are on no device."""
        return self

    def subset(self, indices: Tensor | Sequence[int]) -> StreamedSplit:
        """The samples at `indices` (positions, not ids). They keep their ids."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, targets=self.targets[index], ids=self.ids[index])

    def pictures(self, rows: Tensor) -> Tensor:
        """The images at the given positions, without augmentation: uint8 (n, C, S, S).

        Unreadable images are black, if they may be skipped.
        """
        stream = Stream(replace(self.subset(rows), workers=0), train=False, seed=0)
        ((images, at, _),) = stream.groups([torch.arange(len(rows))], 0)
        pictures = torch.zeros(len(rows), *self.shape, dtype=torch.uint8)
        pictures[at] = images if len(at) else pictures[at]
        return pictures

    def fingerprint(self) -> str:
        """SHA-256 over class names, settings, targets, ids, and the files' names, sizes and modification times.

        It reads the metadata of each file, which takes about 10 microseconds on a local disk, but not its content.
        Copies have the same fingerprint if they keep the times of the files (cp -p, rsync -a, tar).

        Raises:
            DataError: a file is missing, and unreadable files are not skipped.
        """
        return self._digest

    def image_fingerprint(self) -> str:
        """The same without class names and targets: what a teacher's outputs depend on, whatever the labels are.

        Raises:
            DataError: as `fingerprint`.
        """
        return self._image_digest

    @cached_property
    def _digest(self) -> str:
        return self._sha256({"class_names": self.class_names}, self.targets, self.ids)

    @cached_property
    def _image_digest(self) -> str:
        return self._sha256({}, self.ids)

    def _sha256(self, labels: dict[str, Any], *parts: Tensor) -> str:
        """SHA-256 over the shape, `labels`, the settings of reading, `parts` and the files."""
        header: dict[str, Any] = {"shape": [len(self), *self.shape], **labels, "crop_pct": self.reading.crop_pct}
        if self.reading.grey_bits is not None:  # without it the same as before there was one
            header["grey_bits"] = self.reading.grey_bits
        digest = hashlib.sha256(json.dumps(header).encode())
        for part in parts:
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
    """Batches of a streamed split. Its worker processes stay alive between epochs.

    Args:
        split: the files.
        train: augment as in `split.timm`.
        stand_in: in training, replace an unreadable file by the next one, so that batches keep their size; False skips
            it.
        seed: seed of the augmentation.
        pinned: copy batches to pinned memory, from which CUDA can copy asynchronously.
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

    def groups(self, batches: Iterable[Tensor], views: int | Iterable[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each batch: pixels uint8 (n, C, S, S), rows of the split (n,), and rows of the files that were read (n,).

        Args:
            batches: int64 (n,) each: row * repeats + repetition.
            views: view of the first repetition of a row, in units of repetitions; one for all batches or one for each.

        Raises:
            DataError: a file cannot be read, or a worker process died or has no shared memory.
        """
        r, views = self.repeats, repeat(views) if isinstance(views, int) else views
        pairs = zip(batches, views, strict=False)
        self._items.batches = ([(code // r, view * r + code % r) for code in batch.tolist()] for batch, view in pairs)
        try:
            for images, places, messages in self._loader:
                for message in messages:
                    if not self.split.reading.skip_unreadable:
                        raise DataError(f"{message}; {MEND}")
                    warnings.warn(f"left out: {message}", stacklevel=2)
                rows, read = torch.tensor(places, dtype=torch.int64).view(-1, 2).unbind(1)
                yield images, rows, read
        except RuntimeError as error:
            if _NO_SHARED_MEMORY not in str(error):
                raise
            raise DataError(_NO_SHARED_MEMORY) from None
        except (EOFError, ConnectionError) as error:
            # It died while its images were passed on; torch raises when the signal arrives, a moment later.
            time.sleep(1)
            raise _died(type(error).__name__) from error


@contextmanager
def workers_watched() -> Iterator[None]:
    """Raise one clear error if a worker process dies. torch would raise its own error at any place in this process.

    Raises:
        DataError: a worker process died inside the block.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        raise _died(reason) from error


def _died(reason: str) -> DataError:
    return DataError(f"a worker process that decodes images ended ({reason}); if memory is short, lower data.workers")


class _Items:
    """(row, view) of each sample of the requested batches."""

    batches: Iterable[list[tuple[int, int]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        yield from self.batches


class _Sample(NamedTuple):
    """Pixels of a row (None if there are none), the row of the file that was read, and messages about other files."""

    pixels: Tensor | None
    row: int
    read: int
    messages: list[str]


class _Pictures(MapDataset[_Sample]):
    """Maps (row, view) to a sample."""

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
    """Pixels of a batch, the two rows of each sample, and messages about unreadable files.

    The pixels are the only tensor. They are moved to shared memory here: without room there, torch's own thread would
    lose the batch, and the run would wait for it forever.
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
    """Sets up a worker process.

    A launcher signals the whole process group of a rank. The rank decides, saves and ends, and then its workers end. If
    the rank is killed, its workers notice it and end.
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
    """One worker process for each core that this process may use, minus the cores for other ranks of the host."""
    return max(1, ranks.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
