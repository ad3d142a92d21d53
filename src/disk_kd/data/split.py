"""Images in memory, with labels or without.

Shapes: N samples, C channels, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from disk_kd.errors import DataError, shown
from disk_kd.support import UNLABELLED

_CHUNK = 1024


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images of one size, in memory.

    Attributes:
        images: uint8 (N, C, H, W), contiguous, on any device.
        targets: int64 (N,), on the same device; -100 for an image without a label.
        class_names: name of each label, in label order.
        ids: int64 (N,): number of each sample in its original split. Seeds and stored teacher outputs refer to it, so a
            subset keeps it.
        paths: path of each sample, for messages and reports.
        class_words: display name of each class, if its name is an id; None: the name is displayed.

    Raises:
        DataError: types, lengths or labels do not fit together.
    """

    images: Tensor
    targets: Tensor
    class_names: tuple[str, ...]
    ids: Tensor
    paths: tuple[str, ...] | None = None
    class_words: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or not self.images.is_contiguous():
            got = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(f"images are expected as contiguous uint8 (N, C, H, W), got {got}")
        lengths = {len(part) for part in (self.images, self.targets, self.ids, self.paths or self.ids)}
        if len(lengths) > 1:
            raise DataError(f"images, targets, ids and paths are expected in equal number, got {lengths}")
        labels, count = self.targets[self.targets != UNLABELLED], len(self.class_names)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < count:
            low, high = int(labels.min()), int(labels.max())
            raise DataError(f"labels are expected in 0 … {count - 1} for {count} classes, got {low} … {high}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def unlabelled(self) -> int:
        """Number of images without a label."""
        return int((self.targets == UNLABELLED).sum())

    def __repr__(self) -> str:
        size = "x".join(str(side) for side in self.images.shape[1:])
        return f"Split({len(self)} images of {size}, {len(self.class_names)} classes, {self.images.device})"

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The display name of each label, in label order."""
        return tuple(map(shown, self.class_words or self.class_names))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, rows, columns = self.images.shape[1:]
        return channels, rows, columns

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.images.device

    def pictures(self, rows: Tensor) -> Tensor:
        """The images at the given positions, without augmentation: uint8 (n, C, H, W)."""
        return self.images[rows.to(self.device)]

    def to(self, device: torch.device | str) -> Split:
        """The same samples on another device."""
        images, targets, ids = (part.to(device) for part in (self.images, self.targets, self.ids))
        return replace(self, images=images, targets=targets, ids=ids)

    def subset(self, indices: Tensor | Sequence[int]) -> Split:
        """The samples at `indices` (positions, not ids). They keep their ids."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.images.device)
        paths = None if self.paths is None else tuple(self.paths[i] for i in index.tolist())
        images, targets, ids = (part[index] for part in (self.images, self.targets, self.ids))
        return replace(self, images=images, targets=targets, ids=ids, paths=paths)

    def fingerprint(self) -> str:
        """SHA-256 over shapes, class names, images, targets and ids; equal on every device."""
        return self._digest

    def image_fingerprint(self) -> str:
        """SHA-256 over images and ids alone: what a teacher's outputs depend on, whatever the labels are."""
        return self._image_digest

    @cached_property
    def _digest(self) -> str:
        header = {"shape": list(self.images.shape), "class_names": self.class_names}
        return _sha256(header, self.images, self.targets, self.ids)

    @cached_property
    def _image_digest(self) -> str:
        return _sha256({"shape": list(self.images.shape)}, self.images, self.ids)

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, relative to the range 0 … 255."""
        channels = range(self.images.shape[1])
        counts = torch.zeros(len(channels), 256, dtype=torch.float64, device=self.images.device)
        for chunk in self.images.split(_CHUNK):
            counts += torch.stack([chunk[:, c].flatten().bincount(minlength=256) for c in channels])
        level = torch.arange(256, dtype=torch.float64, device=counts.device) / 255
        share = counts / counts.sum(1, keepdim=True)
        mean = share @ level
        variance = (share * (level - mean[:, None]).square()).sum(1)
        return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def _sha256(header: Mapping[str, object], *parts: Tensor) -> str:
    """SHA-256 over a header and the values of tensors."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for part in parts:
        for chunk in part.split(_CHUNK):
            digest.update(chunk.cpu().numpy().tobytes())
    return digest.hexdigest()
