"""A teacher whose outputs are known, and a loader that can be stopped, for the tests of stored outputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from disk_kd.teacher import Teacher, TeacherStore

IDS = [7, 0, 3, 9, 4, 1, 8]
"""A split of seven samples out of ten: 2, 5 and 6 are in the validation split."""
VIEWS, SAMPLES, CLASSES = 3, 10, 5
STEPS = 3
MANIFEST = {"data": "abc", "augment": {"crop": 4, "flip": True}, "seed": 0}
ALL = ("logits", "pooled", "map")


class Batch(NamedTuple):
    images: Tensor
    targets: Tensor
    ids: Tensor
    view: int


class Stopped(Exception):
    """What stands for a kill."""


class SeededLoader:
    """Noise that depends on sample and view alone, in any order and batch size; it counts what it gives.

    Args:
        stop: view, step, and what to do there.
    """

    def __init__(self, batch_size: int = 3, views: int = VIEWS, shuffle: bool = False, stop: Any = None) -> None:
        self.batch_size, self.views, self.shuffle, self.stop = batch_size, views, shuffle, stop
        self.given: list[tuple[int, int]] = []
        self.split = SimpleNamespace(ids=torch.tensor(IDS))
        self.steps_per_epoch = -(-len(IDS) // batch_size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        view = epoch % self.views
        ids = self.split.ids.flip(0) if self.shuffle else self.split.ids
        for step in range(start, self.steps_per_epoch):
            if self.stop and self.stop[:2] == (view, step):
                self.stop[2]()
            self.given.append((view, step))
            rows = ids[step * self.batch_size :][: self.batch_size]
            images = torch.stack([self.image(row, view) for row in rows.tolist()])
            yield Batch(images, torch.zeros(len(rows)), rows, view)

    @staticmethod
    def image(sample: int, view: int) -> Tensor:
        return torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(100 * view + sample))


class Net(nn.Module):
    """Seeded weights, logits scaled by `scale`."""

    def __init__(self, scale: float = 1.0, classes: int = CLASSES) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.num_classes = classes
        self.feature_info = [{"num_chs": 4, "module": "conv"}, {"num_chs": 4, "module": "act"}]
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(4, classes)
        for parameter in self.parameters():
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def teacher(scale: float = 1.0, needs: tuple[str, ...] = ("logits",), classes: int = CLASSES) -> Teacher:
    return Teacher(Net(scale, classes), input_mean=(0.5,) * 3, input_std=(0.25,) * 3, needs=needs)


def build(path: Path, of: Teacher | None = None, loader: Any = None, **changes: Any) -> TeacherStore:
    options = {"views": VIEWS, "samples": SAMPLES, "manifest": MANIFEST, **changes}
    return TeacherStore.build(path, of or teacher(), loader or SeededLoader(), **options)


def stop() -> None:
    raise Stopped


def content(path: Path) -> dict[str, bytes]:
    """The finished files of a store."""
    return {file.name: file.read_bytes() for file in path.glob("*.npy")}
