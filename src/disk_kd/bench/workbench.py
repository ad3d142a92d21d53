"""Shared parts of the cases of one setting: random images, models, stored teacher outputs."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from disk_kd.bench.settings import BenchSettings
from disk_kd.data import Augment, Loader, Split
from disk_kd.devices import inference_batch
from disk_kd.models import create_model
from disk_kd.teacher import Teacher, TeacherStore
from disk_kd.trained import normalisation
from disk_kd.training import TrainSettings


def made_split(samples: int, size: int, classes: int) -> Split:
    """Random images of that size with random labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (samples, 3, size, size), dtype=torch.uint8, generator=generator)
    targets = torch.randint(classes, (samples,), generator=generator)
    return Split(images, targets, tuple(f"class{n}" for n in range(classes)), torch.arange(samples))


class Workbench:
    """Makes the parts of cases, as a run would make them.

    Args:
        settings: settings of the benchmark.
        device: device of the benchmark.
        folder: folder for stored teacher outputs.
        views: number of augmented views of each image. Epoch p uses view p modulo `views`.
    """

    def __init__(self, settings: BenchSettings, device: torch.device, folder: Path, views: int = 2) -> None:
        self.settings, self.device, self.folder, self.views = settings, device, folder, views
        # The method's CIFAR protocol: padding of 4 pixels, AutoAugment, cutout of 16; in proportion.
        self.augment = Augment(
            crop_padding=settings.image_size // 8,
            flip=True,
            auto_augment="cifar10" if settings.auto_augment else "none",
            cutout=settings.image_size // 2,
        )
        self.split = made_split(settings.samples, settings.image_size, settings.classes).to(device)
        self.mean, self.std = normalisation(self.student())
        self.loader = self.batches()
        self.teacher = cache(self._teacher)
        self.store = cache(self._store)

    @property
    def train(self) -> TrainSettings:
        """The settings of our training steps."""
        s = self.settings
        return TrainSettings(
            batch_size=s.batch_size, lr=1e-3, precision=s.precision, compile=s.compile, compile_mode=s.compile_mode
        )

    def batches(self, **changes: Any) -> Loader:
        """Our loader."""
        options: dict[str, Any] = {
            "batch_size": self.settings.batch_size,
            "mean": self.mean,
            "std": self.std,
            "augment": self.augment,
            "views": self.views,
            "channels_last": True,
        }
        return Loader(self.split, **(options | changes))

    def student(self, channels_last: bool = True) -> nn.Module:
        """A student in train mode, the same at every call."""
        torch.manual_seed(0)
        return self.model(self.settings.student, channels_last).train()

    def model(self, name: str, channels_last: bool = True) -> nn.Module:
        """A model in the form that our loop uses, or that other loops use."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = create_model(name, num_classes=self.settings.classes)
        return model.to(self.device).to(memory_format=layout)

    def plain_teacher(self, name: str) -> nn.Module:
        """The teacher in the form that other loops use."""
        torch.manual_seed(1)
        return self.model(name, channels_last=False).eval().requires_grad_(False)

    def _teacher(self, name: str) -> Teacher:
        torch.manual_seed(1)
        precision = self.settings.precision
        return Teacher.of(self.model(name), self.student(), fold=True, precision=precision)

    def _store(self, name: str, needs: frozenset[str] = frozenset({"logits"})) -> TeacherStore:
        store = self.stored(self.folder / name, name, needs)
        store.preload(self.device)
        return store

    def stored(self, folder: Path, name: str, needs: Collection[str] = frozenset({"logits"})) -> TeacherStore:
        """The teacher's outputs for all views, built in `folder` if they are missing."""
        teacher = Teacher.of(self.teacher(name), self.student(), needs)
        loader = self.batches(batch_size=inference_batch(self.device), shuffle=False, drop_last=False)
        return TeacherStore.build(folder, teacher, loader, views=self.views, samples=self.settings.samples, manifest={})
