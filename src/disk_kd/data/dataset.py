"""The splits of a dataset, in memory or streamed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from disk_kd.data.split import Split
from disk_kd.data.stream import StreamedSplit
from disk_kd.errors import DataError

AnySplit = Split | StreamedSplit


@dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of a dataset. They have the same classes and square images of one size.

    Attributes:
        name: name of the dataset.
        train, validation, test: `validation` selects the checkpoint; `test` is read once, at the end.
        normalisation: usual mean and standard deviation of each channel for models of these images, for values in [0,
            1]; None: unknown.

    Raises:
        DataError: the splits differ in classes or image size, or images are not square.
    """

    name: str
    train: AnySplit
    validation: AnySplit | None
    test: AnySplit | None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        channels, height, width = self.train.shape
        if height != width:
            raise DataError(f"{self.name}: square images are needed, got {width}x{height}; give data.image_size")
        for part, split in (("validation", self.validation), ("test", self.test)):
            if split is None:
                continue
            if split.class_names != self.train.class_names:
                raise DataError(f"{self.name}: the {part} split has other classes than the training split")
            if split.shape != self.train.shape:
                got = "x".join(str(side) for side in split.shape)
                expected = f"{channels}x{height}x{width}"
                raise DataError(f"{self.name}: {part} images are {got}, train {expected}; give data.image_size")

    def fingerprint(self) -> str:
        """SHA-256 over the fingerprints of the splits. Resumed and reused runs compare it."""
        parts = [None if split is None else split.fingerprint() for split in (self.train, self.validation, self.test)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label, in label order."""
        return self.train.class_names

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The display name of each label, in label order."""
        return self.train.shown_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.train.class_names)

    @property
    def in_chans(self) -> int:
        """Number of channels of an image."""
        return self.train.shape[0]

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.train.shape[2]
