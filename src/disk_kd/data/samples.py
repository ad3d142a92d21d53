"""A split whose images are not in memory yet: what every source of data gives.

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
    """Labels at hand, images on demand.

    Attributes:
        class_names: the name of each label, in label order.
        targets: int64 (N,).
        files: the images' files; None: they are `images` already.
        paths: where each sample comes from, for messages; needed with `files`.
        images: uint8 (N, C, S, S), in their final size.
        class_words: what people call each class, where its name is an id.
    """

    class_names: tuple[str, ...]
    targets: Tensor
    files: Files | None = None
    paths: tuple[str, ...] | None = None
    images: Tensor | None = None
    class_words: tuple[str, ...] | None = None

    def split(self, reading: Reading, ids: Tensor | None = None) -> Split:
        """Loads the samples `ids`, all of them without.

        Raises:
            DataError: an image cannot be read, or they differ in size.
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
        """The samples `ids`, all of them without, read as they are needed.

        Raises:
            DataError: there is no image size, or the images are in memory already.
        """
        if self.files is None:
            raise DataError("these images are in memory already and cannot be streamed; give data.stream=false")
        if reading.image_size is None:
            raise DataError("streamed images need data.image_size, the side in pixels that they are brought to")
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
    """The splits a source brings."""

    train: Samples
    validation: Samples | None
    test: Samples | None


def from_memory(images: Tensor, targets: Tensor, class_names: tuple[str, ...]) -> Samples:
    """Samples whose images are in memory already, in their final size: uint8 (N, C, S, S)."""
    return Samples(class_names, targets, images=images)
