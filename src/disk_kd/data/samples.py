"""A split whose images are not loaded yet. Every source of data gives one.

Shapes: N samples, C channels, S side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from disk_kd.data.decode import Reading, load_images
from disk_kd.data.split import Split
from disk_kd.data.stream import Files, StreamedSplit
from disk_kd.errors import DataError


@dataclass(frozen=True, eq=False)
class Samples:
    """Labels in memory, images on demand.

    Attributes:
        class_names: name of each label, in label order.
        targets: int64 (N,).
        files: files of the images; None: `images` holds them.
        paths: path of each sample, for messages; needed with `files`.
        images: uint8 (N, C, S, S), in their final size.
        class_words: display name of each class, if its name is an id.
    """

    class_names: tuple[str, ...]
    targets: Tensor
    files: Files | None = None
    paths: tuple[str, ...] | None = None
    images: Tensor | None = None
    class_words: tuple[str, ...] | None = None

    def split(self, reading: Reading, ids: Tensor | None = None) -> Split:
        """Loads the samples `ids`; None: all samples.

        Raises:
            DataError: an image cannot be read, or image sizes differ.
        """
        ids = torch.arange(len(self.targets)) if ids is None else ids
        if self.images is not None:
            images = self.images[ids]
        else:
            assert self.files is not None
            assert self.paths is not None
            images, ids = load_images(self.files, self.paths, ids, reading)
        paths = None if self.paths is None else tuple(self.paths[i] for i in ids.tolist())
        return Split(images, self.targets[ids], self.class_names, ids, paths, self.class_words)

    def stream(self, reading: Reading, ids: Tensor | None = None, workers: int = 0) -> StreamedSplit:
        """Streams the samples `ids`; None: all samples.

        Raises:
            DataError: there is no image size, or the images are in memory.
        """
        if self.files is None:
            raise DataError("these images are in memory already and cannot be streamed; give data.stream=false")
        if reading.image_size is None:
            raise DataError("streamed images need data.image_size, their side in pixels")
        assert self.paths is not None
        ids = torch.arange(len(self.targets)) if ids is None else ids
        return StreamedSplit(
            self.files,
            self.targets[ids],
            self.class_names,
            ids,
            self.paths,
            reading,
            workers=workers,
            class_words=self.class_words,
        )


class Parts(NamedTuple):
    """The splits of a source."""

    train: Samples
    validation: Samples | None
    test: Samples | None


def from_memory(images: Tensor, targets: Tensor, class_names: tuple[str, ...]) -> Samples:
    """Samples whose images are in memory in their final size: uint8 (N, C, S, S)."""
    return Samples(class_names, targets, images=images)
