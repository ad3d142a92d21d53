"""Images without labels: all images of a folder, a tar, a table or a reader, appended to the training samples.

Shapes: N samples.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from disk_kd.data.decode import ENDINGS, Reading, read_picture
from disk_kd.data.folders import FolderFiles, is_image, walk, warn_skipped
from disk_kd.data.readers import unlabelled_reader_samples
from disk_kd.data.samples import Samples
from disk_kd.data.settings import DataSettings, unlabelled_path
from disk_kd.data.stream import Files
from disk_kd.data.tables import TABLES, unlabelled_table_samples
from disk_kd.data.tars import TarFiles, tar_members
from disk_kd.errors import DataError, shown
from disk_kd.support import UNLABELLED


@dataclass(frozen=True)
class JoinedFiles:
    """Files of several sources, numbered one source after the other.

    Args:
        sources: the files of each source.
        counts: number of files of each source.
    """

    sources: tuple[Files, ...]
    counts: tuple[int, ...]

    def __call__(self, number: int) -> bytes:
        source, at = self._place(number)
        return source(at)

    def stamp(self, number: int) -> str:
        """The stamp of the file in its source."""
        source, at = self._place(number)
        return source.stamp(at)

    def _place(self, number: int) -> tuple[Files, int]:
        starts = [0, *accumulate(self.counts)]
        at = bisect_right(starts, number) - 1
        return self.sources[at], number - starts[at]


def unlabelled_samples(data: DataSettings) -> Samples:
    """The images of `data.unlabelled`, which is a path or the name of a timm reader.

    Raises:
        DataError: there is no such source, or no image of it can be read.
    """
    path = unlabelled_path(data)
    if path is None:
        assert data.unlabelled is not None
        reads_root = data.name.partition("/")[0].lower() == data.unlabelled.partition("/")[0].lower()
        samples = unlabelled_reader_samples(data.unlabelled, data.root if reads_root else None, data.download)
    elif path.is_dir():
        samples = _folder_samples(path)
    elif path.is_file():
        samples = _file_samples(path, data)
    else:
        raise DataError(f"there is no folder, tar or table data.unlabelled {path}; give the path of images")
    _check_one_readable(samples, Reading(data.image_size, grey_bits=data.grey_bits))
    return samples


def _folder_samples(path: Path) -> Samples:
    """All images below a folder, in the order of their paths, and those in its tars."""
    names: list[str] = []
    for folder, _, files in walk(path):
        names += [os.path.relpath(os.path.join(folder, name), path).replace(os.sep, "/") for name in files]
    images = sorted(filter(is_image, names))
    tars = sorted(name for name in names if name.lower().endswith(".tar"))
    warn_skipped(f"{path}/", set(names) - set(images) - set(tars), expected="images")
    parts = [_tar_samples(path / name) for name in tars]
    if images:
        parts.insert(0, from_files(FolderFiles(path, tuple(images)), [f"{path}/{name}" for name in images]))
    if not any(len(part.targets) for part in parts):
        raise DataError(f"{path} is expected to hold images, it holds none; their names end in {' '.join(ENDINGS)}")
    return joined(parts)


def _file_samples(path: Path, data: DataSettings) -> Samples:
    if path.suffix.lower() in TABLES:
        return unlabelled_table_samples(path, data.table, data.skip_unreadable)
    if path.suffix.lower() != ".tar":
        raise DataError(f"data.unlabelled {path} is expected to be a folder, an uncompressed tar or a table (.csv)")
    samples = _tar_samples(path)
    if not len(samples.targets):
        raise DataError(f"{path} is expected to hold images, it holds none; their names end in {' '.join(ENDINGS)}")
    return samples


def _tar_samples(path: Path) -> Samples:
    members = tar_members(path)
    names = sorted(name for name, member in members.items() if member.isfile() and is_image(name))
    files = TarFiles((path, members[name].offset_data, members[name].size) for name in names)
    return from_files(files, [f"{path}:{name}" for name in names])


def from_files(files: Files, paths: Sequence[str]) -> Samples:
    """Samples without labels."""
    return Samples((), torch.full((len(paths),), UNLABELLED), files, tuple(map(shown, paths)))


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of several sources, one after the other, with the classes of the first.

    Raises:
        DataError: the images of one source are in memory in their final size, and those of another are not.
    """
    if len(parts) == 1:
        return parts[0]
    targets = torch.cat([part.targets for part in parts])
    images = [part.images for part in parts]
    if all(part.files is not None for part in parts):
        sources = tuple(part.files for part in parts if part.files is not None)
        paths = tuple(path for part in parts for path in part.paths or ())
        return replace(parts[0], targets=targets, paths=paths, files=JoinedFiles(sources, tuple(map(len, _all(parts)))))
    found = [image for image in images if image is not None]
    if len(found) < len(images) or len({image.shape[1:] for image in found}) > 1:
        raise DataError("labelled and unlabelled images are of different sizes or sources; give data.image_size")
    return replace(parts[0], targets=targets, images=torch.cat(found), files=None, paths=None)


def _all(parts: Sequence[Samples]) -> list[Tensor]:
    return [part.targets for part in parts]


def in_memory(samples: Samples, like: Tensor, reading: Reading) -> Samples:
    """The samples decoded in the size of `like`, the images (N, C, S, S) of another source.

    Raises:
        DataError: the images of `like` are grey, or an image cannot be read.
    """
    if samples.images is not None:
        return samples
    if like.shape[1] != 3:
        raise DataError("unlabelled files are read in colour, but the labelled images are grey; give colour images")
    split = samples.split(replace(reading, image_size=like.shape[-1]))
    return Samples((), split.targets, images=split.images)


def _check_one_readable(samples: Samples, reading: Reading) -> None:
    """Raise an error if no image can be read."""
    if samples.files is None:
        return
    assert samples.paths is not None
    first: DataError | None = None
    for number in range(len(samples.targets)):
        try:
            read_picture(samples.files, samples.paths, number, reading.grey_bits)
        except DataError as error:
            first = first or error
        else:
            return
    raise DataError(f"none of the {len(samples.targets)} unlabelled images can be read: {first}")
