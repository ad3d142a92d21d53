"""A split whose images are not in memory yet: what every source of data gives.

Shapes: N samples, C channels, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from disk_kd.data.split import Split


@dataclass(frozen=True, eq=False)
class Samples:
    """Labels at hand, images on demand.

    Attributes:
        class_names: the name of each label, in label order.
        targets: int64 (N,).
        load: (ids int64 (n,), image size or None) -> uint8 (n, C, S, S).
        paths: where each sample comes from.
    """

    class_names: tuple[str, ...]
    targets: Tensor
    load: Callable[[Tensor, int | None], Tensor]
    paths: tuple[str, ...] | None = None

    def split(self, image_size: int | None, ids: Tensor | None = None) -> Split:
        """Loads the samples `ids`, all of them without."""
        ids = torch.arange(len(self.targets)) if ids is None else ids
        paths = None if self.paths is None else tuple(self.paths[i] for i in ids.tolist())
        return Split(self.load(ids, image_size), self.targets[ids], self.class_names, ids, paths)


class Parts(NamedTuple):
    """The splits a source brings."""

    train: Samples
    validation: Samples | None
    test: Samples | None


def from_memory(images: Tensor, targets: Tensor, class_names: tuple[str, ...]) -> Samples:
    """Samples whose images are in memory already, in their final size: uint8 (N, C, S, S)."""
    return Samples(class_names, targets, lambda ids, image_size: images[ids])
